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
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from agents.runlog import to_jsonable, write_json
from benchmarks.paced_workers import (
    ROOT,
    TRAINS,
    TRL_TRAINS,
    Training,
    Worker,
    Workers,
    has_trl,
    machine,
    say,
    spread,
    unpack,
)

FIRST_ISSUE = "cdac8cf86c6118aa575f6580f5435dd3b72fc976"
OURS, TRL, ONE_BY_ONE, FIRST = "ours", "TRL", "TRL, one by one", "first issue"
GOALS = {"updates over TRL": 5.0, "rollouts over TRL": 5.0, "collect over first issue": 3.0}


@dataclass(frozen=True)
class PeerConfig(Training):
    """Options of the benchmark."""

    rounds: int = 10
    """How often every contestant takes its turn."""
    warmup: int = 2
    """Turns before those, which are not counted."""
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


@contextmanager
def contestants(config: PeerConfig, folder: Path) -> Iterator[dict[str, dict[str, Worker]]]:
    """The processes that whole ``updates`` and ``collect`` are asked of, by name; all are ready.

    Raises:
        RuntimeError: they do not have the same questions and vocabulary, or not the code that they should have.
    """
    settings = config.settings() | {"updates": config.warmup + config.rounds + 1}
    named: dict[str, dict[str, Worker]] = {"updates": {}, "collect": {}}
    with Workers(folder, config.threads) as workers:
        named["updates"][OURS] = workers.start(OURS, [sys.executable, "-m", TRAINS], settings)
        if config.trl:
            python = config.trl_python or Path(sys.executable)
            if has_trl(python):
                at_a_time = {TRL: config.episodes, **({ONE_BY_ONE: 1} if config.one_by_one_rounds else {})}
                for name, count in at_a_time.items():
                    program = [python, "-m", TRL_TRAINS]
                    named["updates"][name] = workers.start(name, program, {**settings, "at_a_time": count})
            else:
                say(f"TRL is left out: {python} does not have it; do: pip install 'trl>=1.16' there")
        collect = [sys.executable, "-P", ROOT / "benchmarks" / "paced_collect.py"]
        for engine in config.engines:
            named["collect"][engine] = workers.start(engine, collect, {**settings, "engine": engine})
        if config.first_issue:
            tree = folder / "first-issue"
            if unpack(FIRST_ISSUE, tree):
                engine = {"engine": "agents.generation:CachedGenerator"}
                named["collect"][FIRST] = workers.start(FIRST, collect, {**settings, **engine}, tree)
            else:
                say(f"the engine of the first issue is left out: there is no commit {FIRST_ISSUE[:7]} in {ROOT}")
        workers.wait()
        yield named


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


def main(config: PeerConfig, arguments: Sequence[str] = ()) -> None:
    """Measure everything, print it, and write it down with the command line's ``arguments``."""
    with tempfile.TemporaryDirectory() as folder, contestants(config, Path(folder)) as workers:
        reports = measure(config, workers)
        result = {
            "command": shlex.join(["python", "-m", "benchmarks.peer_training", *arguments]),
            "machine": machine(config.threads, workers["updates"].get(TRL)),
            "settings": to_jsonable(config),
            **summary(reports, config),
        }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, result)
    print(json.dumps({name: result[name] for name in ("updates", "collect", "ratios", "goals")}, indent=2))


if __name__ == "__main__":
    main(tyro.cli(PeerConfig, description=__doc__), sys.argv[1:])
