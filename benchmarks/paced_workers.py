"""Processes that do a piece of work when they are asked to, so that what is compared can take turns on one machine.

The programs are benchmarks/paced_updates.py and benchmarks/paced_trl.py, which train, and benchmarks/paced_collect.py,
which plays; `benchmarks.peer_training` and `benchmarks.trl_learning` ask them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from agents.models import TINY_BASE
from agents.runlog import to_jsonable
from agents.tasks import EnvConfig

ROOT = Path(__file__).parents[1]
TRAINS, TRL_TRAINS = "benchmarks.paced_updates", "benchmarks.paced_trl"
"""Modules whose workers make whole updates."""


@dataclass(frozen=True)
class Training:
    """What contestants have in common."""

    episodes: int = 128
    """Episodes in a round of rollouts."""
    group_size: int = 8
    """Episodes of each question."""
    minibatch_size: int = 32
    """Episodes per optimiser step."""
    threads: int = 1
    """Torch's CPU threads in each process; more than one want a machine that does nothing else."""
    model: str = "tiny"
    """The tiny model to train: "tiny" for the shipped base, or the directory of another."""
    learning_rate: float = 0.0
    """Of both optimisers; 0 keeps the policy, and so the episodes, what they are."""
    kl_coef: float = 0.005
    """Weight of the KL divergence from a reference model; 0 leaves that model out on both sides."""
    seed: int = 1
    """Decides questions and sampled tokens."""
    env: EnvConfig = field(default_factory=EnvConfig)

    def settings(self) -> dict[str, Any]:
        """What a worker is told of it."""
        names = ("episodes", "group_size", "minibatch_size", "kl_coef", "learning_rate", "threads", "seed")
        model = TINY_BASE if self.model == "tiny" else Path(self.model).resolve()
        return {name: getattr(self, name) for name in names} | {"model": str(model), "env": to_jsonable(self.env)}


class Worker:
    """A process that does a piece of work when it is asked to."""

    def __init__(self, name: str, command: Sequence[str | Path], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **env},
                cwd=log.parent,
                text=True,
            )
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def wait(self) -> dict[str, Any]:
        """The next report.

        Raises:
            RuntimeError: the process has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            last = "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-15:])
            raise RuntimeError(f"expected a report of {self.name!r}, got the end of its process:\n{last}")
        return json.loads(line)

    def work(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a piece of work and wait until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.wait()


class Workers:
    """Workers in folders of their own below ``folder``, with so many threads each; they end with the block."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._env |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        self._stack = ExitStack()
        self._started: list[tuple[Worker, Path]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, program: Sequence[str | Path], settings: Mapping[str, Any], tree: Path = ROOT) -> Worker:
        """Start ``program`` with the code in ``tree``; it is given ``settings`` and a ``run_dir``."""
        place = self._folder / f"{len(self._started)}"
        place.mkdir()
        command = [*program, json.dumps({**settings, "run_dir": str(place / "run")})]
        worker = self._stack.enter_context(
            Worker(name, command, {"PYTHONPATH": str(tree), **self._env}, place / "log.txt")
        )
        self._started.append((worker, tree))
        return worker

    def wait(self) -> None:
        """Wait until all are ready.

        Raises:
            RuntimeError: they do not have the same questions and vocabulary, or not the code that they should have.
        """
        for worker, tree in self._started:
            worker.facts = worker.wait()
            check_facts(worker.name, worker.facts, self._started[0][0].facts, tree)


def check_facts(name: str, facts: Mapping[str, Any], expected: Mapping[str, Any], tree: Path) -> None:
    """Raises RuntimeError: other questions or another vocabulary than ``expected``, or code from outside ``tree``."""
    if facts["trees"] != [str(tree.resolve())]:
        raise RuntimeError(f"expected {name!r} to run the code in {tree}, got that in {facts['trees']}")
    for what in ("questions", "vocab_size"):
        if facts[what] != expected[what]:
            raise RuntimeError(
                f"expected {name!r} to have the {what} of the others, got {facts[what]} and {expected[what]}; "
                "do: leave it out with --no-first-issue or --no-trl"
            )


def has_trl(python: Path) -> bool:
    """Whether that interpreter finds TRL 1.16 or newer."""
    program = "from importlib.metadata import version; print(version('trl'))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return done.returncode == 0 and [int(x) for x in done.stdout.split(".")[:2]] >= [1, 16]


def unpack(commit: str, folder: Path) -> bool:
    """Write the files of ``commit`` into ``folder``; False where the history does not have it."""
    done = subprocess.run(["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True)
    if done.returncode:
        return False
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return True


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, quartiles and extremes."""
    names = ("median", "lowest", "lower_quartile", "upper_quartile", "highest")
    points = np.quantile(values, (0.5, 0.0, 0.25, 0.75, 1.0))
    return {name: round(float(point), digits) for name, point in zip(names, points, strict=True)}


def machine(threads: int, trl: Worker | None) -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.facts["versions"] if trl is not None else None,
    }
