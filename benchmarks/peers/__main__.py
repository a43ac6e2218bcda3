"""What does a step cost here and in other libraries, and does it matter how a turn is cut?

    python -m benchmarks.peers.venvs --names openenv skyrl gem aviary trl
    python -m benchmarks.peers

Each contestant is a process of its own, in an environment of its own, and idle until it is asked;
benchmarks/peers/contestants.py and trl_loop.py are all of their code. They take turns, round by round and in changing
order, on one machine, so that whatever else it does hits all of them alike; reported are medians over the rounds with
95 % bootstrap intervals.

* An episode: reset, one search, one answer, with a stub for the search server that answers at once; CPU time, all
  threads of the process together.
* A vector step: 16 episodes are reset and search at the same time, with a server that takes 10 ms; wall time, in the
  ways that the library offers. Three servers: one that answers requests in parallel, one that takes one request at a
  time, and one that takes 10 ms for every query, one after the other, so that a batch gains nothing.
* Whether how a turn is cut matters: every turn is given whole, in two and in four chunks, and the text of all
  observations and the rewards are compared.

They do not do the same work; docs/peers.md says who does what. Writes a JSON file, a plot and the table of that page.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.report import draw, table, write_page
from benchmarks.peers.venvs import FOLDER, ROOT, peers, python_of
from benchmarks.peers.worker import SECONDS, SERVERS


@dataclass(frozen=True)
class PeersConfig:
    """Options of the benchmark."""

    rounds: int = 30
    """How often every contestant takes its turn."""
    episodes: int = 100
    """Episodes in a turn."""
    warmup: int = 3
    """Turns before those, which are not counted."""
    names: tuple[str, ...] = ()
    """Only these contestants."""
    folder: Path = FOLDER
    """Where the environments of benchmarks.peers.venvs are."""
    output: Path = Path("benchmarks/results/peers.json")
    """The JSON file to write."""
    plot: Path | None = Path("docs/images/peers.png")
    """The plot to write."""
    page: Path | None = Path("docs/peers.md")
    """The page whose table is to be renewed."""


class Worker:
    """A contestant's process."""

    def __init__(self, name: str, python: Path | str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.peers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment,
        )

    def read(self) -> Any:
        """The next reply.

        Raises:
            EOFError: the process has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError("expected a reply of a contestant, got none; do: run benchmarks.peers.worker NAME by hand")
        return json.loads(line)

    def ask(self, **request: Any) -> Any:
        """The reply to ``request``."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def summary(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The median and its 95 % percentile bootstrap interval."""
    rows = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(rows), size=(2_000, len(rows)))
    low, high = np.quantile(np.median(rows[draws], axis=1), (0.025, 0.975))
    return {"median": round(float(np.median(rows)), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def measure(config: PeersConfig, workers: Mapping[str, Worker]) -> dict[str, dict[str, Any]]:
    """Everything about every contestant."""
    checks = {name: worker.ask(what="check") for name, worker in workers.items()}
    for name, check in checks.items():
        if check["reward"] != 1.0:
            raise RuntimeError(f"expected {name} to be paid for the right answer, got {check['reward']}")
    episodes: dict[str, list[float]] = {name: [] for name in workers}
    steps: dict[tuple[str, str, str], list[float]] = {
        (name, vector, server): []
        for name, check in checks.items()
        for vector in check["vectors"]
        for server in SERVERS
    }
    order = random.Random(0)
    for number in range(config.warmup + config.rounds):
        counts = number >= config.warmup
        for name in order.sample(list(workers), len(workers)):
            found = workers[name].ask(what="episodes", count=config.episodes)
            episodes[name] += [found] * counts
        for name, vector, server in order.sample(list(steps), len(steps)):
            found = workers[name].ask(what="vector", vector=vector, server=server)
            steps[name, vector, server] += [found] * counts
    return {
        name: {
            "episode_microseconds": summary(episodes[name]),
            "vector_milliseconds": {
                vector: {server: summary(steps[name, vector, server]) for server in SERVERS}
                for vector in check["vectors"]
            },
            "same_in_chunks": _same(check),
            "in_two_chunks": check["chunks"]["2"],
        }
        for name, check in checks.items()
    }


def _same(check: Mapping[str, Any]) -> bool | None:
    """Whether an episode in chunks is the episode; None where an action has no chunks."""
    if check["whole"] is None:
        return None
    return all(played == check["whole"] for played in check["chunks"].values())


def start(config: PeersConfig, stack: ExitStack) -> tuple[dict[str, Worker], dict[str, str]]:
    """The workers that came up, and why others did not."""
    workers, left_out = {}, {}
    for name in config.names or CONTESTANTS:
        peer = CONTESTANTS[name][0]
        python = sys.executable if peer is None else python_of(peer, config.folder)
        if not Path(python).exists():
            left_out[name] = f"no environment: python -m benchmarks.peers.venvs --names {peer}"
            continue
        worker = Worker(name, python)
        stack.callback(worker.close)
        try:
            worker.read()
        except EOFError:
            left_out[name] = "its process ended"
            continue
        workers[name] = worker
    return workers, left_out


def main(config: PeersConfig, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Measure, write and print everything."""
    with ExitStack() as stack:
        workers, left_out = start(config, stack)
        results = measure(config, workers)
    versions = {name: peer["packages"] + peer.get("alone", []) for name, peer in peers().items()}
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.peers", *arguments]),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
        },
        "packages": {peer: versions[peer] for peer, _ in CONTESTANTS.values() if peer is not None},
        "rounds": config.rounds,
        "episodes_per_round": config.episodes,
        "server_seconds": SECONDS,
        "contestants": results,
        "left_out": left_out,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table(result))
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    if config.plot is not None:
        config.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(result).savefig(config.plot, dpi=150)
    if config.page is not None:
        write_page(config.page, result)
    return result


if __name__ == "__main__":
    main(tyro.cli(PeersConfig, prog="python -m benchmarks.peers", description=__doc__), sys.argv[1:])
