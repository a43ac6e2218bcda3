"""Rounds of rollouts, each played when it is asked for: a worker of `benchmarks.peer_training`.

It imports only what every version of this repository has had since its first engine, so that one file measures them
all: ``PYTHONPATH=TREE python -P paced_collect.py SETTINGS`` plays with the engine of TREE.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class Pace:
    """One JSON object a line, out when a piece of work is done and in when the next one is to begin.

    Standard output belongs to these lines: whatever else is printed goes to standard error.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def next(self, report: dict[str, Any]) -> dict[str, Any]:
        """Report, and wait for the next request. Ends the process when there is none."""
        print(json.dumps(report), file=self._out, flush=True)
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        return json.loads(line)


class Clock:
    """Wall and CPU seconds of this process, all threads together, since the clock was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """``wall`` and ``cpu`` so far."""
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


def options(kind: Any, given: dict[str, Any]) -> Any:
    """The dataclass ``kind`` made of those of ``given`` that it has."""
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known})


def facts(questions: Sequence[Any], codec: Any) -> dict[str, Any]:
    """What has to be the same for all that is compared, and where the code comes from."""
    import agents
    import search_gym

    asked = json.dumps([[question.text, *question.answers] for question in questions])
    return {
        "trees": sorted({str(Path(str(package.__file__)).resolve().parents[1]) for package in (agents, search_gym)}),
        "num_questions": len(questions),
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "vocab_size": codec.vocab_size,
    }


def named(name: str) -> Any:
    """What ``package.module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def work(pace: Pace, settings: dict[str, Any]) -> None:
    """Collect the asked ``questions`` with the asked ``seed``, again and again."""
    from agents.models import load_model
    from agents.rollout import collect
    from agents.tasks import EnvConfig, make_envs

    torch.set_num_threads(settings["threads"])
    model, codec = load_model(settings["model"])
    envs = make_envs(options(EnvConfig, settings["env"]), codec, settings["episodes"])
    generator = named(settings["engine"])(model, codec)
    request = pace.next(facts(envs.task.questions, codec))
    while True:
        clock = Clock()
        rollouts = collect(envs, generator, request["questions"], request["seed"])
        seconds = clock.read()
        request = pace.next(
            {
                **seconds,
                "sampled_tokens": float(sum(rollout.loss_mask.sum() for rollout in rollouts)),
                "all_tokens": float(sum(len(rollout.token_ids) for rollout in rollouts)),
                "searches": float(sum(rollout.num_searches for rollout in rollouts)),
                "episodes": [hashlib.sha256(rollout.token_ids.tobytes()).hexdigest() for rollout in rollouts],
            }
        )


if __name__ == "__main__":
    work(Pace(), json.loads(sys.argv[1]))
