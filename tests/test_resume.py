"""A run that is killed at any moment and started again ends like one that was left alone, bit by bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import algorithms
from agents.checkpoint import read_state
from agents.config import SaveConfig
from agents.health import HealthConfig
from agents.models import CheckpointError
from agents.saving import restore_tensors
from agents.trainer import CollapseError, Trainer
from search_gym.errors import OptionError

UPDATES = 6
# The children are forked from a process that has imported everything but has not trained.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["agents.ppo", "agents.dapo"])


def config(name: str, run_dir: Path, **options: Any) -> Any:
    small = {"updates": UPDATES, "rollouts_per_update": 16, "minibatch_size": 8, "group_size": 4}
    save = SaveConfig(resume=True, save_every=options.pop("save_every", 2))
    return replace(algorithms.load(name).PRESETS["default"], run_dir=run_dir, save=save, **{**small, **options})


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def weights(run_dir: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run_dir / "checkpoint").glob("*.safetensors"))]


def child(name: str, options: Any) -> None:
    algorithms.load(name).train(options)


def start(name: str, options: Any) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=child, args=(name, options))
    process.start()
    return process


def kill_when(process: multiprocessing.process.BaseProcess, condition: Callable[[], bool]) -> bool:
    """Kill ``process`` as soon as ``condition`` holds; False if it ended before."""
    while process.is_alive():
        if condition():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return True
        time.sleep(0.0005)
    return False


@pytest.mark.parametrize("name", ["ppo", "dapo"])
def test_killed_at_any_moment_a_run_goes_on_exactly(name: str, tmp_path: Path) -> None:
    alone = config(name, tmp_path / "alone")
    CONTEXT.Process(target=algorithms.load, args=(name,)).run()  # so that no import is in the time taken
    began = time.monotonic()
    process = start(name, alone)
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0

    killed = config(name, tmp_path / "killed")
    metrics, states = killed.run_dir / "metrics.jsonl", killed.run_dir / "states"

    def has_rows(count: int) -> Callable[[], bool]:
        return lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= count

    def writes_state() -> bool:
        return any(states.glob(".update-*.new"))

    moments = [
        has_rows(1),  # before any state is there
        writes_state,  # in the middle of the first state
        has_rows(UPDATES // 2),  # in an update after a state
        writes_state,
    ]

    def ends_like_the_other() -> bool:
        return rows(killed.run_dir) == rows(alone.run_dir) and weights(killed.run_dir) == weights(alone.run_dir)

    rng = np.random.default_rng(0)
    kills = 0
    while kills < 5:
        if moments:
            moment = moments.pop(0)
        else:
            deadline = time.monotonic() + rng.uniform(0.1, 0.9) * duration
            moment = lambda deadline=deadline: time.monotonic() > deadline  # noqa: E731
        if kill_when(start(name, killed), moment):
            kills += 1
        else:  # it reached its end first: it begins anew, and is killed earlier
            assert ends_like_the_other()
            shutil.rmtree(killed.run_dir)
            duration /= 2
    process = start(name, killed)
    process.join()
    assert process.exitcode == 0
    assert ends_like_the_other()


@pytest.fixture
def stopped(tmp_path: Path) -> Any:
    """The options of a run of six updates that was interrupted in its fourth."""
    options = config("ppo", tmp_path / "run", save_every=1)

    class Interrupt(Exception):
        pass

    def interrupt(*args: Any) -> Any:
        raise Interrupt

    collect = Trainer.collect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "collect", lambda run: interrupt() if run.update == 3 else collect(run))
        with pytest.raises(Interrupt):
            algorithms.load("ppo").train(options)
    return options


def test_a_state_holds_what_the_optimiser_remembers(stopped: Any) -> None:
    state = read_state(stopped.run_dir)
    assert state is not None
    assert state.update == 3
    names = {name.partition(".")[2] for name in state.tensors if name.startswith("policy.")}
    assert "value_head.weight" in names
    for name in names:
        assert {f"optimizer.{name}.{key}" for key in ("step", "exp_avg", "exp_avg_sq")} <= state.tensors.keys()


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"updates": 8}, {"kl_coef": 0.5}, {"model": "elsewhere"}],
    ids=lambda change: next(iter(change)),
)
def test_other_options_are_named_and_nothing_is_lost(stopped: Any, change: dict[str, Any]) -> None:
    before = rows(stopped.run_dir)
    with pytest.raises((OptionError, CheckpointError, ValueError), match=next(iter(change))):
        algorithms.load("ppo").train(replace(stopped, **change))
    assert rows(stopped.run_dir) == before
    assert read_state(stopped.run_dir) is not None


def test_another_algorithm_is_refused(stopped: Any) -> None:
    other = config("grpo", stopped.run_dir, save_every=1)
    with pytest.raises(OptionError, match=r"algorithm.*then 'PPO', now 'GRPO'"):
        algorithms.load("grpo").train(other)


def test_a_state_of_another_model_is_refused(stopped: Any) -> None:
    state = read_state(stopped.run_dir)
    assert state is not None
    other = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"saved state of a model with these weights, got others"):
        restore_tensors(state.tensors, other, torch.optim.AdamW(other.parameters()))


def test_without_resume_a_run_begins_again(stopped: Any) -> None:
    again = replace(stopped, updates=1, save=SaveConfig(save_every=1))
    algorithms.load("ppo").train(again)
    assert [row["update"] for row in rows(stopped.run_dir)] == [1]
    state = read_state(stopped.run_dir)
    assert state is not None
    assert state.update == 1


def test_a_finished_run_is_returned_as_it_is(tmp_path: Path) -> None:
    options = config("ppo", tmp_path / "run", updates=2)
    first = algorithms.load("ppo").train(options)
    again = algorithms.load("ppo").train(options)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert one.equal(other)
    assert len(rows(options.run_dir)) == 2


class TestCollapse:
    """What ``on_collapse`` does when the policy's answers become worthless."""

    def broken(self, tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch, *, updates: int = 8) -> Any:
        """A run whose fourth update yields a loss that is not a number."""
        from agents import learner

        backward = learner.Learner.backward

        def poisoned(self: Trainer, loss: Any, stats: Any) -> None:
            is_bad = self.update == 3 and self._rollbacks < 1
            backward(self, loss * float("nan") if is_bad else loss, stats)

        monkeypatch.setattr(learner.Learner, "backward", poisoned)
        health = HealthConfig(on_collapse=action)  # pyright: ignore[reportArgumentType]
        return config("ppo", tmp_path / "run", health=health, updates=updates, save_every=2)

    def test_warn_names_it_and_goes_on_without_the_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = self.broken(tmp_path, "warn", monkeypatch)
        algorithms.load("ppo").train(options)
        found = rows(options.run_dir)
        assert len(found) == 8
        assert found[3]["loss/skipped_steps"] == 2
        assert found[3]["alarms"][0]["name"] == "non-finite"
        assert all("alarms" not in row for row in found if row["update"] != 4)
        assert "not finite" in capsys.readouterr().out

    def test_stop_keeps_a_checkpoint_and_says_why(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = self.broken(tmp_path, "stop", monkeypatch)
        with pytest.raises(CollapseError, match="collapse in update 4"):
            algorithms.load("ppo").train(options)
        assert (options.run_dir / "checkpoint" / "model.safetensors").is_file()
        state = read_state(options.run_dir)
        assert state is not None
        assert state.update == 2  # the last healthy one

    def test_rollback_goes_back_and_learns_on_at_half_the_rate(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = self.broken(tmp_path, "rollback", monkeypatch)
        algorithms.load("ppo").train(options)
        found = rows(options.run_dir)
        assert [row["update"] for row in found] == list(range(1, 9))
        assert all(row["loss/skipped_steps"] == 0 for row in found)
        healthy = replace(options, run_dir=tmp_path / "healthy", health=HealthConfig())
        monkeypatch.undo()
        algorithms.load("ppo").train(healthy)
        expected = rows(healthy.run_dir)
        assert found[:2] == expected[:2]
        for row, usual in zip(found[2:], expected[2:], strict=True):
            assert row["loss/learning_rate"] == pytest.approx(usual["loss/learning_rate"] / 2)
