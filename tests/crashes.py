"""Kills a process that writes checkpoints, at every step it takes and at random moments, and looks at what is left.

A program of its own, because it forks: ``python tests/crashes.py DIRECTORY SCENARIO...`` prints how many kills there
were in each. "SCENARIO+renames" plays it on a system that cannot exchange two directories in one step.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from small_models import tiny
from transformers.utils.logging import disable_progress_bar

from agents import checkpoint, directories, training_state
from agents.checkpoint import load_policy, save_policy
from agents.policy import CausalLMWithValueHead
from agents.training_state import TrainingState, read_state, write_state
from search_gym import tinywiki

TOUCHING_DISK = {
    function.__code__
    for function in (
        checkpoint.save_policy,
        training_state.write_state,
        directories.replace_directory,
        training_state.drop_states,
        training_state._remove,
        training_state._tidy,
        directories._exchange,
    )
}
NUM_RANDOM_KILLS = 40


def dies(action: Callable[[], Any], step: int) -> bool:
    """Whether ``action`` in a child process got as far as ``step``, where SIGKILL ended it.

    A step is a file-system call from anywhere in Python, or a line of a function in ``TOUCHING_DISK``; the kill comes
    before it.
    """
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the action itself failed"
        return os.WIFSIGNALED(status)
    steps = itertools.count(1)

    def count() -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code not in TOUCHING_DISK:
            return None
        if event == "line":
            count()
        return trace

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            count()

    try:
        sys.settrace(trace)
        sys.addaudithook(audit)
        action()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def every_crash(prepare: Callable[[], None], action: Callable[[], Any]) -> Iterator[int]:
    """Kill ``action`` at its first step, at its second, ... until it gets through; each time after ``prepare()``."""
    for step in itertools.count(1):
        prepare()
        if not dies(action, step):
            assert step > 20, "there was nothing to kill"
            return
        yield step


def state(update: int, content: int | None = None) -> TrainingState:
    content = update if content is None else content
    return TrainingState(update, {"weights": torch.full((300,), float(content))}, {"content": content})


def content_of(found: TrainingState | None) -> int:
    """The number that all of a state consists of."""
    assert found is not None, "no state is left"
    assert torch.equal(found.tensors["weights"], torch.full((300,), float(found.data["content"])))
    return found.data["content"]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def next_state(directory: Path, keep: int) -> int:
    """State 3 follows state 2; whatever happens, one of them is found, and the next write leaves all in order."""

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        for update in (1, 2):
            write_state(directory, state(update), keep=keep)

    kills = 0
    for _ in every_crash(prepare, lambda: write_state(directory, state(3), keep=keep)):
        assert content_of(read_state(directory)) in (2, 3)
        for name in (directory / "states").glob("update-*"):
            update = int(name.name[-6:])
            assert content_of(read_state(directory, at_most=update)) == update
        write_state(directory, state(4), keep=keep)
        assert content_of(read_state(directory)) == 4
        assert names(directory / "states")[-1] == "update-000004"
        assert len(names(directory / "states")) == keep
        kills += 1
    assert content_of(read_state(directory)) == 3
    return kills


def aside(directory: Path) -> int:
    """A state that an earlier crash left under the name to which it was put aside is safe until there is another."""

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        path = write_state(directory, state(2))
        path.rename(path.with_name(f".{path.name}.old"))

    kills = 0
    for _ in every_crash(prepare, lambda: write_state(directory, state(3))):
        assert content_of(read_state(directory)) in (2, 3)
        kills += 1
    assert names(directory / "states") == ["update-000003"]
    return kills


def same_state(directory: Path) -> int:
    """State 2 is written again, as after a return to state 1."""

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        write_state(directory, state(2, content=20))

    kills = 0
    for _ in every_crash(prepare, lambda: write_state(directory, state(2, content=21))):
        assert content_of(read_state(directory)) in (20, 21)
        write_state(directory, state(3))
        assert names(directory / "states") == ["update-000003"]
        kills += 1
    assert content_of(read_state(directory)) == 21
    return kills


def policy_of(value: float) -> CausalLMWithValueHead:
    codec = tinywiki.codec()
    policy = CausalLMWithValueHead(tiny(codec.vocab_size), vocab_size=codec.vocab_size)
    for weight in policy.state_dict().values():
        weight.fill_(value)
    return policy


def policies(directory: Path) -> int:
    """A policy replaces another; the loader finds all of one of them."""
    codec, target = tinywiki.codec(), directory / "checkpoint"
    one, other = policy_of(1.0), policy_of(2.0)

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        save_policy(target, one, codec)

    kills = 0
    for _ in every_crash(prepare, lambda: save_policy(target, other, codec)):
        found = {float(value) for weight in load_policy(target)[0].state_dict().values() for value in weight.unique()}
        assert found in ({1.0}, {2.0})
        kills += 1
    save_policy(target, one, codec)
    assert names(directory) == ["checkpoint"]
    return kills


def random_kills(directory: Path) -> int:
    """A writer is killed at random moments and started again; what it had acknowledged is never lost."""
    acknowledged = done = 0
    rng = random.Random(0)
    for _ in range(NUM_RANDOM_KILLS):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            for update in itertools.count(done + 1):
                write_state(directory, state(update))
                os.write(writer, update.to_bytes(4, "big"))
        os.close(writer)
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the writer ended by itself"
        with os.fdopen(reader, "rb") as pipe:
            received = pipe.read()
        acknowledged = int.from_bytes(received[-4:], "big") or acknowledged
        found = read_state(directory)
        done = content_of(found) if found or acknowledged else 0
        assert done >= acknowledged
    assert acknowledged > NUM_RANDOM_KILLS
    return NUM_RANDOM_KILLS


SCENARIOS: dict[str, Callable[[Path], int]] = {
    "next-state": lambda directory: next_state(directory, keep=1),
    "next-state-of-two": lambda directory: next_state(directory, keep=2),
    "aside": aside,
    "same-state": same_state,
    "policy": policies,
    "random": random_kills,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # a kill loses no written pages, and a test of many kills needs the time
    disable_progress_bar()
    exchange = directories._exchange
    for argument in sys.argv[2:]:
        scenario, _, renames = argument.partition("+")
        directories._exchange = (lambda one, other: False) if renames else exchange
        print(SCENARIOS[scenario](Path(sys.argv[1], argument)))
