"""Training runs side by side, each evaluated on the same held-out worlds; finished ones are kept, others go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from transformers.utils.logging import disable_progress_bar

from agents import algorithms
from agents.checkpoint import load_policy
from agents.config import TrainConfig
from agents.demo import em_by_kind, held_out, scripted_estimates
from agents.evaluate import evaluate
from agents.runlog import write_json
from agents.tasks import make_envs

Result = TypeVar("Result")


def in_processes(
    function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]], *, jobs: int, description: str
) -> list[Result]:
    """``function(*task)`` for each task, in their order, ``jobs`` at a time in processes of their own."""
    # Child processes start from a clean interpreter, because torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(function, *task) for task in tasks]
        for _ in track(as_completed(futures), description, total=len(futures), console=Console(stderr=True)):
            pass
        return [future.result() for future in futures]


def run_all(
    runs: Sequence[tuple[str, TrainConfig]], *, jobs: int, questions_per_kind: int, description: str = "runs"
) -> list[dict[str, Any]]:
    """The results of `run_one` for each algorithm and its options, in their order, ``jobs`` at a time."""
    tasks = [(name, config, questions_per_kind) for name, config in runs]
    return in_processes(run_one, tasks, jobs=jobs, description=description)


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "torch": torch.__version__,
    }


def run_one(algorithm: str, config: TrainConfig, questions_per_kind: int) -> dict[str, Any]:
    """Train and evaluate; a result that is already in the run folder is returned as it is."""
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
        policy = algorithms.load(algorithm).train(replace(config, save=replace(config.save, resume=True)))
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
