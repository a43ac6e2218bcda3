"""All methods of `benchmarks.real_lm` on one GPU at the same time, with a common deadline, and then their comparison.

    python -m benchmarks.real_lm_study --data DATA --minutes 15
    python -m benchmarks.real_lm_study --data DATA --seeds 1 2 3 --jobs 2 --minutes 10 -- --learning-rate 1e-5

What follows ``--`` goes to every run. Runs that are side by side share the GPU, so that seconds of training are seconds
of the clock for all of them alike. A run that is not over half a minute after its minutes is ended; what it had written
counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import real_lm_compare
from benchmarks.real_lm_envs import METHODS, Method
from benchmarks.real_lm_model import prepare_model
from search_gym.errors import SearchGymError

GRACE = 30.0


@dataclass(frozen=True)
class StudyConfig:
    """Which runs, and how many at a time."""

    data: Path
    """Folder with the questions and passages."""
    methods: tuple[Method, ...] = METHODS
    """What is trained."""
    algorithms: tuple[str, ...] = ("grpo",)
    """What trains it: "grpo", "ppo"."""
    seeds: tuple[int, ...] = (1,)
    """A run each."""
    jobs: int = 4
    """Runs at a time."""
    minutes: float = 15.0
    """Wall-clock time of a run."""
    train_seconds: float | None = None
    """Seconds of training of every run; by default its minutes less 100 seconds."""
    model: str | None = None
    """Directory or GGUF file; by default SmolLM2-135M-Instruct. It is converted once."""
    run_dir: Path = Path("runs/real-lm-study")
    """Where the runs go, a folder each."""
    output: Path = Path("benchmarks/results/real_lm.json")
    """Where the comparison goes."""
    page: Path | None = None
    """Markdown page to write."""


def commands(config: StudyConfig, model: Path, extra: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """The folder and the command of each run, the searching ones first."""
    seconds = config.train_seconds or max(1.0, 60 * config.minutes - 100)
    runs = []
    for seed in config.seeds:
        for algorithm in config.algorithms:
            for method in config.methods:
                folder = config.run_dir / f"{method}-{algorithm}-{seed}"
                options = {
                    "--data": config.data,
                    "--method": method,
                    "--algorithm": algorithm,
                    "--seed": seed,
                    "--minutes": config.minutes,
                    "--train-seconds": seconds,
                    "--model": model,
                    "--run-dir": folder,
                }
                words = [str(word) for option in options.items() for word in option]
                runs.append((folder, [sys.executable, "-m", "benchmarks.real_lm", *words, *extra]))
    return runs


def run_all(runs: Sequence[tuple[Path, list[str]]], *, jobs: int, seconds: float) -> list[int | None]:
    """The exit status of each run, ``jobs`` at a time, None for those that were ended after ``seconds``."""
    waiting = list(enumerate(runs))
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = {}
    status: list[int | None] = [None] * len(runs)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, (folder, command) = waiting.pop(0)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "log.txt").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running[number] = process, time.monotonic()
        time.sleep(0.2)
        for number, (process, began) in list(running.items()):
            if process.poll() is not None:
                status[number] = process.returncode
            elif time.monotonic() - began > seconds:
                process.kill()
                process.wait()
            else:
                continue
            del running[number]
    return status


def main(config: StudyConfig, extra: Sequence[str] = ()) -> None:
    """Convert the model, do the runs, compare them."""
    directory = Path(config.model) if config.model and Path(config.model).is_dir() else None
    if directory is None:
        directory = config.run_dir / "model"
        if not (directory / "config.json").is_file():
            prepare_model(config.model, directory)
    runs = commands(config, directory, extra)
    for (folder, _), status in zip(
        runs, run_all(runs, jobs=config.jobs, seconds=60 * config.minutes + GRACE), strict=True
    ):
        state = "was ended" if status is None else f"exit status {status}"
        print(f"{folder}: {state}")
        if status != 0:
            print((folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-2000:])
    real_lm_compare.main(real_lm_compare.CompareConfig(config.run_dir, config.output, config.page, config.jobs))


if __name__ == "__main__":
    arguments = sys.argv[1:]
    place = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        main(tyro.cli(StudyConfig, args=arguments[:place], description=__doc__), arguments[place + 1 :])
    except SearchGymError as error:
        sys.exit(f"error: {error}")
