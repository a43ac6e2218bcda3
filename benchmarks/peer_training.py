"""How fast is training the tiny model, next to TRL's GRPOTrainer and to this repository's first engine?

    pip install -e '.[agents,trl]'
    python -m benchmarks.peer_training

Everything is measured in one run. Each contestant is a process of its own that waits until it is asked for one piece of
work; the contestants take turns, round by round and in changing order, so that whatever else the machine does hits all
of them alike. Ratios are those of one round: reported are their median, quartiles and extremes. Seconds are wall time;
CPU time, all threads of a process together, stands beside it.

Whole updates are rollouts and the optimiser's steps on them:

* ours: `agents.grpo`, as its command runs it.
* TRL: ``GRPOTrainer`` with a ``rollout_func`` that plays the same episodes in the same environment, all of a round at
  once, with TRL's own generation (``model.generate``, with a cache of keys and values within a turn; every turn begins
  with the whole context, as in TRL's own loop of tool calls).
* TRL, one by one: the same, but one episode after the other, as TRL's own example scripts for ``rollout_func`` play
  (examples/scripts/openenv/sudoku.py; with vLLM there). It takes part in fewer rounds, and no goal is judged by it.

Both sides draw the same questions in the same order, with the same sizes, limits, loss, KL term (a reference model on
both sides), optimiser steps and number of threads; benchmarks/paced_trl.py is all of the code on TRL's side. The
learning rate is 0 unless you set one: the optimisers work as hard as ever, and both sides go on playing episodes of the
same policy. What tokens they sample differs, since the random numbers do; how many they sampled is reported.

Rollouts alone are `agents.rollout.collect`, with the engines that you name and with the engine of the first issue,
which comes out of the history of this repository (left out where there is none) and gets the same weights, questions,
seeds and limits. ``same_episodes`` is the share of episodes in which an engine sampled the very tokens that the first
one did.

What cannot be measured is left out, with a message, and is null in the JSON file.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import transformers
import tyro

from agents.models import TINY_BASE
from agents.runlog import to_jsonable, write_json
from agents.tasks import EnvConfig

ROOT = Path(__file__).parents[1]
FIRST_ISSUE = "cdac8cf86c6118aa575f6580f5435dd3b72fc976"
OURS, TRL, ONE_BY_ONE, FIRST = "ours", "TRL", "TRL, one by one", "first issue"
GOALS = {"updates over TRL": 5.0, "rollouts over TRL": 5.0, "collect over first issue": 3.0}


@dataclass(frozen=True)
class PeerConfig:
    """Options of the benchmark."""

    rounds: int = 10
    """How often every contestant takes its turn."""
    warmup: int = 2
    """Turns before those, which are not counted."""
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
    engines: Annotated[tuple[str, ...], tyro.conf.arg(name="engine")] = (
        "agents.generation:make_generator",
        "agents.generation:CachedGenerator",
    )
    """What plays `collect`: "package.module:attribute" of something to be called with a model and its codec."""
    trl: bool = True
    """Measure TRL."""
    trl_python: Path | None = None
    """The Python interpreter that has TRL; by default the one that runs this."""
    one_by_one_rounds: int = 3
    """Rounds in which TRL also plays one episode after the other."""
    first_issue: bool = True
    """Measure the engine of the first issue."""
    output: Path = Path("benchmarks/results/peer_training.json")
    """The JSON file to write."""


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


@contextmanager
def contestants(config: PeerConfig, folder: Path) -> Iterator[dict[str, dict[str, Worker]]]:
    """The processes that whole ``updates`` and ``collect`` are asked of, by name; all are ready.

    Raises:
        RuntimeError: they do not have the same questions and vocabulary, or not the code that they should have.
    """
    settings = {
        "model": str(TINY_BASE if config.model == "tiny" else Path(config.model).resolve()),
        "env": to_jsonable(config.env),
        "episodes": config.episodes,
        "group_size": config.group_size,
        "minibatch_size": config.minibatch_size,
        "kl_coef": config.kl_coef,
        "learning_rate": config.learning_rate,
        "threads": config.threads,
        "seed": config.seed,
        "updates": config.warmup + config.rounds + 1,
    }
    threads = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

    with ExitStack() as stack:
        started: list[tuple[str, str, Path]] = []
        workers: dict[str, dict[str, Worker]] = {"updates": {}, "collect": {}}

        def start(kind: str, name: str, tree: Path, program: Sequence[str | Path], **more: Any) -> None:
            place = folder / f"{len(started)}"
            place.mkdir()
            command = [*program, json.dumps({**settings, **more, "run_dir": str(place / "run")})]
            env = {"PYTHONPATH": str(tree), **threads, **quiet}
            workers[kind][name] = stack.enter_context(Worker(name, command, env, place / "log.txt"))
            started.append((kind, name, tree))

        start("updates", OURS, ROOT, [sys.executable, "-m", "benchmarks.paced_updates"])
        if config.trl:
            python = config.trl_python or Path(sys.executable)
            if has_trl(python):
                trl = [python, "-m", "benchmarks.paced_trl"]
                start("updates", TRL, ROOT, trl, at_a_time=config.episodes)
                if config.one_by_one_rounds:
                    start("updates", ONE_BY_ONE, ROOT, trl, at_a_time=1)
            else:
                say(f"TRL is left out: {python} does not have it; do: pip install 'trl>=1.16' there")
        collect = [sys.executable, "-P", ROOT / "benchmarks" / "paced_collect.py"]
        for engine in config.engines:
            start("collect", engine, ROOT, collect, engine=engine)
        if config.first_issue:
            tree = folder / "first-issue"
            if unpack(FIRST_ISSUE, tree):
                start("collect", FIRST, tree, collect, engine="agents.generation:CachedGenerator")
            else:
                say(f"the engine of the first issue is left out: there is no commit {FIRST_ISSUE[:7]} in {ROOT}")
        for kind, name, tree in started:
            workers[kind][name].facts = workers[kind][name].wait()
            check_facts(name, workers[kind][name].facts, workers["updates"][OURS].facts, tree)
        yield workers


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


Reports = dict[str, dict[int, dict[str, Any]]]


def measure(config: PeerConfig, workers: Mapping[str, Mapping[str, Worker]]) -> dict[str, Reports]:
    """The reports of every contestant of either kind, by name and number of the round, warm-up left out."""
    asked, known = config.episodes // config.group_size, workers["updates"][OURS].facts["num_questions"]
    rng = np.random.default_rng(config.seed)
    reports: dict[str, Reports] = {kind: {name: {} for name in named} for kind, named in workers.items()}
    everyone = [(kind, name, worker) for kind, named in workers.items() for name, worker in named.items()]
    for turn in range(config.warmup + config.rounds):
        request = {
            "questions": np.repeat(rng.permutation(known)[:asked], config.group_size).tolist(),
            "seed": config.seed + turn,
        }
        number = turn - config.warmup
        for kind, name, worker in everyone[:: 1 if turn % 2 else -1]:
            if name == ONE_BY_ONE and not -1 <= number < config.one_by_one_rounds:
                continue
            report = worker.work(request)
            if number >= 0:
                reports[kind][name][number] = report
        say(f"round {number + 1} of {config.rounds}" if number >= 0 else "warm-up")
    return reports


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    """Median, quartiles and extremes."""
    names = ("median", "lowest", "lower_quartile", "upper_quartile", "highest")
    points = np.quantile(values, (0.5, 0.0, 0.25, 0.75, 1.0))
    return {name: round(float(point), digits) for name, point in zip(names, points, strict=True)}


def speed(reports: Mapping[int, Mapping[str, Any]], episodes: int, prefix: str = "") -> dict[str, Any]:
    """Episodes a second, and seconds of a piece of work by either clock."""
    wall, cpu = ([report[f"{prefix}{clock}"] for report in reports.values()] for clock in ("wall", "cpu"))
    return {
        "episodes_per_second": spread([episodes / seconds for seconds in wall], 1),
        "wall_seconds": spread(wall, 4),
        "cpu_seconds": spread(cpu, 4),
    }


def ratio(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]], ours_prefix: str, theirs_prefix: str
) -> dict[str, Any]:
    """How many times as fast ``ours`` is, round by round, by either clock."""
    rounds = sorted(ours.keys() & theirs.keys())
    return {
        "rounds": len(rounds),
        **{
            clock: spread([theirs[i][theirs_prefix + clock] / ours[i][ours_prefix + clock] for i in rounds], 3)
            for clock in ("wall", "cpu")
        },
    }


def workload(reports: Mapping[int, Mapping[str, Any]], per: int) -> dict[str, float]:
    """Means over episodes, which show that all did the same work; ``per``: the episodes that a report sums over."""
    names = ("sampled_tokens", "all_tokens", "searches")
    return {
        name: round(statistics.mean(report[name] for report in reports.values()) / per, 2)
        for name in names
        if all(name in report for report in reports.values())
    }


def summary(reports: Mapping[str, Reports], config: PeerConfig) -> dict[str, Any]:
    """All figures: speeds, ratios, workloads, and whether the goals are met (null where there is nothing to judge)."""
    updates, collected, episodes = reports["updates"], reports["collect"], config.episodes
    fastest = min(config.engines, key=lambda name: statistics.median(x["wall"] for x in collected[name].values()))
    peers = [name for name in (TRL, ONE_BY_ONE) if name in updates]
    result: dict[str, Any] = {
        "updates": {name: {**speed(rows, episodes), "episode": workload(rows, 1)} for name, rows in updates.items()},
        "rollouts": {name: speed(updates[name], episodes, "rollout_") for name in peers},
        "collect": {
            name: {**speed(rows, episodes), "episode": workload(rows, episodes)} for name, rows in collected.items()
        },
        "ratios": {
            **{f"updates over {peer}": ratio(updates[OURS], updates[peer], "", "") for peer in peers},
            **{f"rollouts over {peer}": ratio(collected[fastest], updates[peer], "", "rollout_") for peer in peers},
        },
    }
    if FIRST in collected:
        first = collected[FIRST]
        for name in config.engines:
            pairs = [zip(first[i]["episodes"], rows["episodes"], strict=True) for i, rows in collected[name].items()]
            same = [theirs == ours for round_ in pairs for theirs, ours in round_]
            result["collect"][name]["same_episodes"] = round(statistics.mean(same), 4)
        result["ratios"][f"collect over {FIRST}"] = ratio(collected[fastest], first, "", "")
    result["fastest_engine"] = fastest
    result["goals"] = {name: judge(goal, result["ratios"].get(name)) for name, goal in GOALS.items()}
    return result


def judge(goal: float, measured: Mapping[str, Any] | None) -> dict[str, Any]:
    """A goal, the median ratio of wall times that was measured, and whether that is enough."""
    if measured is None:
        return {"goal": goal, "measured": None, "met": None}
    median = measured["wall"]["median"]
    return {"goal": goal, "measured": median, "met": median >= goal}


def machine(config: PeerConfig, trl: Worker | None) -> dict[str, Any]:
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
        "threads": config.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.facts["versions"] if trl is not None else None,
    }


def main(config: PeerConfig, arguments: Sequence[str] = ()) -> None:
    """Measure everything, print it, and write it down with the command line's ``arguments``."""
    with tempfile.TemporaryDirectory() as folder, contestants(config, Path(folder)) as workers:
        reports = measure(config, workers)
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.peer_training", *arguments]),
            "machine": machine(config, workers["updates"].get(TRL)),
            "settings": to_jsonable(config),
            **summary(reports, config),
        }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, result)
    print(json.dumps({name: result[name] for name in ("updates", "collect", "ratios", "goals")}, indent=2))


if __name__ == "__main__":
    main(tyro.cli(PeerConfig, description=__doc__), sys.argv[1:])
