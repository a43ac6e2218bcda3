"""The learning rate of each algorithm under the ``matched`` preset, searched over one grid with one budget.

    python -m benchmarks.learning_rates --algorithms ppo grpo --num-seeds 2 --jobs 2

Algorithms are compared fairly only if each has the rate that suits it, found in the same way: every rate of the grid is
run with the same seeds, and the best is the one whose seeds have the highest mean exact match over all kinds of
held-out questions. Writes one JSON file with every run. Finished runs are kept in ``--work-dir``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import tyro
from rich.console import Console
from rich.table import Table

from agents import algorithms
from agents.config import pick
from agents.runlog import command_line, write_json
from benchmarks.runs import machine, run_all
from search_gym.errors import SearchGymError


@dataclass(frozen=True)
class LearningRatesConfig:
    """Options of the search."""

    algorithms: tuple[str, ...] = ("ppo", "grpo")
    """Names of algorithms in agents/ that have the preset."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    """Learning rates of the language model; the value head's is ten times as large."""
    num_seeds: int = 2
    """Seeds 1 to this number, for each rate."""
    preset: str = "matched"
    """Preset of the algorithms."""
    updates: int | None = None
    """Updates of a run; by default the preset's."""
    jobs: int = 2
    """Training runs at a time, one torch thread each."""
    questions_per_kind: int = 300
    """Held-out questions of each kind."""
    output: Path = Path("benchmarks/results/learning_rates.json")
    """The JSON file to write."""
    work_dir: Path = Path("runs/learning-rates")
    """Where the runs go."""


def main(config: LearningRatesConfig) -> None:
    """Run the grid and write the table."""
    runs, rates = [], []
    for name in config.algorithms:
        presets = algorithms.load(name).PRESETS
        base = presets[pick("preset", config.preset, list(presets))]
        for rate in config.rates:
            optimizer = replace(base.optimizer, learning_rate=rate, value_learning_rate=10 * rate)
            for seed in range(1, config.num_seeds + 1):
                folder = config.work_dir / f"{name}-{config.preset}-{rate:g}-{seed}"
                run = replace(base, optimizer=optimizer, seed=seed, run_dir=folder)
                runs.append((name, run if config.updates is None else replace(run, updates=config.updates)))
                rates.append(rate)
    results = run_all(runs, jobs=config.jobs, questions_per_kind=config.questions_per_kind)
    results = [{**result, "learning_rate": rate} for result, rate in zip(results, rates, strict=True)]
    means = {
        name: {
            rate: fmean(
                fmean(result["em_after"].values())
                for result in results
                if result["algorithm"] == name and result["learning_rate"] == rate
            )
            for rate in config.rates
        }
        for name in config.algorithms
    }
    best = {name: max(by_rate, key=lambda rate: by_rate[rate]) for name, by_rate in means.items()}
    summary = {
        "command": command_line(),
        **machine(),
        "preset": config.preset,
        "mean_em": {name: {f"{rate:g}": round(em, 4) for rate, em in found.items()} for name, found in means.items()},
        "best_learning_rate": best,
        "results": results,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, summary)
    table = Table(title=f"mean exact match on held-out worlds, {config.num_seeds} seeds a rate; the best is marked")
    for column in ("algorithm", *(f"{rate:g}" for rate in config.rates)):
        table.add_column(column, justify="right")
    for name, by_rate in means.items():
        table.add_row(name, *(f"{em:.2f}{'*' if rate == best[name] else ''}" for rate, em in by_rate.items()))
    Console().print(table)


if __name__ == "__main__":
    try:
        main(tyro.cli(LearningRatesConfig, description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
