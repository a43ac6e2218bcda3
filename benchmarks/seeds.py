"""How often does an algorithm learn to search? One training run a seed, each evaluated on held-out worlds.

    python -m benchmarks.seeds --algorithms ppo grpo rloo reinforce --num-seeds 5 --jobs 2
    python -m benchmarks.seeds --num-seeds 2 --preset long --output benchmarks/results/seeds_long.json

Writes one JSON file: the command, the machine, and for every run exact match before and after by kind of question,
the best scripted policy that searches once (the ceiling of static RAG), and the seconds of training. Finished runs are
kept in ``--work-dir``, and interrupted ones go on from their last saved state.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from agents import algorithms
from agents.config import pick
from agents.runlog import command_line, write_json
from benchmarks.runs import machine, run_all
from search_gym.errors import SearchGymError

GOAL = 0.90


@dataclass(frozen=True)
class SeedsConfig:
    """Options of the benchmark."""

    algorithms: tuple[str, ...] = ("ppo", "grpo", "rloo", "reinforce")
    """Names of algorithms in agents/."""
    num_seeds: int = 5
    """Seeds 1 to this number."""
    jobs: int = 2
    """Training runs at a time, one torch thread each."""
    preset: str = "default"
    """Preset of the algorithms."""
    questions_per_kind: int = 300
    """Held-out questions of each kind."""
    output: Path = Path("benchmarks/results/seeds.json")
    """The JSON file to write."""
    work_dir: Path = Path("runs/seeds")
    """Where the runs go."""


def main(config: SeedsConfig) -> None:
    """Run all seeds and write the table."""
    runs = []
    for name in config.algorithms:
        presets = algorithms.load(name).PRESETS
        base = presets[pick("preset", config.preset, list(presets))]
        for seed in range(1, config.num_seeds + 1):
            folder = config.work_dir / f"{name}-{config.preset}-{seed}"
            runs.append((name, replace(base, seed=seed, run_dir=folder)))
    results = run_all(runs, jobs=config.jobs, questions_per_kind=config.questions_per_kind)
    kinds = list(results[0]["em_after"])
    reached = {
        name: sum(
            all(result["em_after"][kind] >= GOAL for kind in kinds) for result in results if result["algorithm"] == name
        )
        for name in config.algorithms
    }
    summary = {
        "command": command_line(),
        **machine(),
        "preset": config.preset,
        "goal": GOAL,
        "seeds_that_reach_the_goal_on_every_kind": reached,
        "results": results,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, summary)
    counts = ", ".join(f"{name} {count}" for name, count in reached.items())
    table = Table(title=f"seeds of {config.num_seeds} that reach {GOAL:.2f} on every kind of question: {counts}")
    for column in (
        "algorithm",
        "seed",
        *(f"{kind} before" for kind in kinds),
        *(f"{kind} after" for kind in kinds),
        "seconds",
    ):
        table.add_column(column, justify="right")
    for result in results:
        em = [f"{result[when][kind]:.2f}" for when in ("em_before", "em_after") for kind in kinds]
        table.add_row(result["algorithm"], str(result["seed"]), *em, f"{result['train_seconds']:.0f}")
    Console().print(table)


if __name__ == "__main__":
    try:
        main(tyro.cli(SeedsConfig, description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
