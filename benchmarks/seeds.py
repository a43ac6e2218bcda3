"""How often does an algorithm learn to search? One training run a seed, each evaluated on held-out worlds.

    python -m benchmarks.seeds --algorithms ppo grpo rloo reinforce --num-seeds 5 --jobs 2
    python -m benchmarks.seeds --num-seeds 2 --preset long --output benchmarks/results/seeds_long.json

Writes one JSON file: the command, the machine, and for every run exact match before and after by kind of question,
the best scripted policy that searches once (the ceiling of static RAG), and the seconds of training. Finished runs are
kept in ``--work-dir``, and interrupted ones go on from their last saved state.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from agents import algorithms
from agents.checkpoint import load_policy
from agents.config import TrainConfig, pick
from agents.demo import em_by_kind, held_out, scripted_estimates
from agents.evaluate import evaluate
from agents.runlog import command_line, write_json
from agents.tasks import make_envs

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


def run_seed(algorithm: str, config: TrainConfig, questions_per_kind: int) -> dict[str, Any]:
    """Train and evaluate one seed; a result that is already in the run folder is returned as it is."""
    result_file = config.run_dir / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text(encoding="utf-8"))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.compute.threads)
    disable_progress_bar()
    with (config.run_dir / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
        base, codec = load_policy(config.model)
        envs, index = held_out(config.env, codec, make_envs, questions_per_kind)
        before = evaluate(base.model, envs, index, seed=config.seed)
        wall, cpu = time.perf_counter(), time.process_time()
        policy = algorithms.load(algorithm).train(config)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        after = evaluate(policy.model, envs, index, seed=config.seed)
    result = {
        "algorithm": algorithm,
        "seed": config.seed,
        "em_before": em_by_kind(before.estimates, lambda em: round(em.mean, 4)),
        "em_after": em_by_kind(after.estimates, lambda em: round(em.mean, 4)),
        "single_search": em_by_kind(
            scripted_estimates(envs, index, config)["single-search"], lambda em: round(em.mean, 4)
        ),
        "searches": {kind: round(estimates["searches"].mean, 3) for kind, estimates in after.estimates.items()},
        "train_seconds": round(wall, 1),
        "train_cpu_seconds": round(cpu, 1),
    }
    write_json(result_file, result)
    return result


def main(config: SeedsConfig) -> None:
    """Run all seeds and write the table."""
    runs = []
    for name in config.algorithms:
        presets = algorithms.load(name).PRESETS
        base = presets[pick("preset", config.preset, list(presets))]
        for seed in range(1, config.num_seeds + 1):
            folder = config.work_dir / f"{name}-{config.preset}-{seed}"
            runs.append((name, replace(base, seed=seed, run_dir=folder, save=replace(base.save, resume=True))))
    # Child processes start from a clean interpreter, because torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, mp_context=context) as pool:
        futures = [pool.submit(run_seed, name, run, config.questions_per_kind) for name, run in runs]
        done = track(as_completed(futures), total=len(futures), description="seeds", console=Console(stderr=True))
        results = [future.result() for future in done]
    results.sort(key=lambda result: (config.algorithms.index(result["algorithm"]), result["seed"]))
    kinds = list(results[0]["em_after"])
    reached = {
        name: sum(
            all(result["em_after"][kind] >= GOAL for kind in kinds) for result in results if result["algorithm"] == name
        )
        for name in config.algorithms
    }
    summary = {
        "command": command_line(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "torch": torch.__version__,
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
    main(tyro.cli(SeedsConfig, description=__doc__))
