"""A run that is killed at any moment and started again ends like one that was left alone, bit by bit."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import algorithms
from agents.config import SaveConfig
from agents.health import HealthConfig
from agents.learner import Learner
from agents.models import CheckpointError
from agents.runlog import RunLog
from agents.saving import restore_tensors
from agents.trainer import CollapseError, Trainer
from agents.training_state import read_state
from agents.training_transcripts import TrainingTranscripts
from search_gym.errors import OptionError

UPDATES = 6
# The children are forked from a process that has imported everything but has not trained.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["agents.ppo", "agents.dapo"])


def config(name: str, run_dir: Path, **options: Any) -> Any:
    small = {"updates": UPDATES, "rollouts_per_update": 16, "minibatch_size": 8, "group_size": 4}
    save = SaveConfig(resume=True, save_every=options.pop("save_every", 2), transcripts=2, transcripts_every=1)
    preset = algorithms.load(name).PRESETS["default"]
    env = replace(preset.env, reward="format")  # which the untrained policy earns often enough for groups to differ
    return replace(preset, run_dir=run_dir, save=save, **{"env": env, **small, **options})


def rows(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def episodes(run_dir: Path) -> list[str]:
    return (run_dir / "training_transcripts.jsonl").read_text().splitlines()


def weights(run_dir: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((run_dir / "checkpoint").glob("*.safetensors"))]


def die_at(event: str, count: int) -> None:
    """Let this process kill itself when it comes to ``event`` for the ``count``-th time.

    "rollouts": a round has been played. "gradient": a part of a mini-batch has been computed. "row": the log has got
    a row. "episodes": some have been kept. "state": a file of a state is about to be opened, renamed or removed.
    """
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            result = function(*args)
            step()
            return result

        return wrapped

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        if (name == "open" or name.startswith("os.")) and any("/states/" in str(argument) for argument in arguments):
            step()

    if event == "state":
        sys.addaudithook(audit)
    else:
        places = {
            "rollouts": (Trainer, "collect"),
            "gradient": (Learner, "backward"),
            "row": (RunLog, "write"),
            "episodes": (TrainingTranscripts, "write"),
        }
        owner, name = places[event]
        setattr(owner, name, stepping(getattr(owner, name)))


def child(name: str, options: Any, moment: tuple[str, int] | None, ready: Any) -> None:
    if moment is not None:
        die_at(*moment)
    ready.set()
    algorithms.load(name).train(options)


def start(name: str, options: Any, moment: tuple[str, int] | None = None) -> tuple[BaseProcess, Any]:
    """A process that trains, and an event that says that it is about to begin."""
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=child, args=(name, options, moment, ready))
    process.start()
    return process, ready


def run(name: str, options: Any, moment: tuple[str, int] | None = None) -> int | None:
    """The exit code of a process that trains; minus the signal's number if one ended it."""
    process, _ = start(name, options, moment)
    process.join()
    return process.exitcode


@pytest.fixture(scope="module", params=["ppo", "dapo"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An algorithm, and the folder of a run of it that was left alone."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    assert run(request.param, config(request.param, run_dir)) == 0
    return request.param, run_dir


def assert_same_end(run_dir: Path, other: Path) -> None:
    assert rows(run_dir) == rows(other)
    assert episodes(run_dir) == episodes(other) != []
    assert weights(run_dir) == weights(other)


def test_killed_at_any_moment_a_run_goes_on_exactly(alone: tuple[str, Path], tmp_path: Path) -> None:
    """Each process kills itself at a moment of its own work, so that no clock decides whether it is met."""
    name, expected = alone
    killed = config(name, tmp_path / "killed")
    moments = [
        ("rollouts", 1),  # before there is anything to go on from
        ("gradient", 3),  # in the second mini-batch of the first update
        ("state", 1),  # before the first file of the first state
        ("state", 4),  # in the middle of it
        ("row", 3),  # after an update whose state is not saved, and whose episodes are not kept yet
        ("episodes", 1),  # after an update whose episodes are kept, but not its state
        ("state", 10),  # while the next state is written
        ("state", 14),
        ("gradient", 1),  # in the first update after a return
        ("rollouts", 2),  # before the second one is recorded
    ]
    for moment in moments:
        assert run(name, killed, moment) == -signal.SIGKILL, moment
    assert not (killed.run_dir / "checkpoint").exists()
    assert run(name, killed) == 0
    assert_same_end(killed.run_dir, expected)


def test_killed_by_the_clock_a_run_goes_on_exactly(alone: tuple[str, Path], tmp_path: Path) -> None:
    """Three kills wherever the process happens to be; one that has reached its end by then has lost nothing either."""
    name, expected = alone
    killed = config(name, tmp_path / "killed")
    lines = (expected / "metrics.jsonl").read_text().splitlines()
    seconds = sum(json.loads(line)["time/rollout_seconds"] + json.loads(line)["time/update_seconds"] for line in lines)
    for share in np.random.default_rng(0).uniform(0.2, 1.0, size=3):
        process, ready = start(name, killed)
        assert ready.wait(300)
        process.join(share * seconds)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert run(name, killed) == 0
    assert_same_end(killed.run_dir, expected)


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
        kept = [json.loads(line)["update"] for line in episodes(options.run_dir)]
        assert kept == [update for update in range(1, 9) for _ in range(2)]
        assert all(row["loss/skipped_steps"] == 0 for row in found)
        healthy = replace(options, run_dir=tmp_path / "healthy", health=HealthConfig())
        monkeypatch.undo()
        algorithms.load("ppo").train(healthy)
        expected = rows(healthy.run_dir)
        assert found[:2] == expected[:2]
        for row, usual in zip(found[2:], expected[2:], strict=True):
            assert row["loss/learning_rate"] == pytest.approx(usual["loss/learning_rate"] / 2)
