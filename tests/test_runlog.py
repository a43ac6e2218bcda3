"""A run's files: complete at any moment, one line an update, continued where a run was interrupted."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.health import Alarm
from agents.runlog import RunLog, to_jsonable, write_json
from search_gym.errors import SearchGymError


@dataclass(frozen=True)
class Inner:
    path: Path = Path("a/b")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    numbers: tuple[float, ...] = (1.0, 2.0)


def test_configurations_become_plain_data() -> None:
    assert to_jsonable(Outer(Inner())) == {"inner": {"path": "a/b"}, "numbers": [1.0, 2.0]}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_log_writes_what_it_was_told_and_shows_progress(tmp_path: Path, is_terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=120)
    with RunLog(tmp_path, Outer(Inner()), total=3, title="PPO", console=console) as log:
        for update in (1, 2, 3):
            log.write({"update": update, "rollout/em": 0.25 * update})
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == update
    rows = [json.loads(line) for line in lines]
    assert [row["rollout/em"] for row in rows] == [0.25, 0.5, 0.75]
    assert all(earlier["time/seconds"] <= later["time/seconds"] for earlier, later in itertools.pairwise(rows))
    assert json.loads((tmp_path / "config.json").read_text())["inner"] == {"path": "a/b"}
    assert ("time left" in screen.getvalue()) == is_terminal


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def write_run(run_dir: Path, updates: int = 5, **options: Any) -> list[str]:
    """A log of ``updates`` updates, and its lines."""
    with RunLog(run_dir, {"seed": 1}, total=updates, title="PPO", console=quiet(), **options) as log:
        for update in range(options.get("finished", 0) + 1, updates + 1):
            log.write({"update": update, "rollout/em": update / 10})
    return (run_dir / "metrics.jsonl").read_text().splitlines()


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Mapping[str, float]]] = []
        self.is_closed = False

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        self.told.append((update, dict(metrics)))

    def close(self) -> None:
        self.is_closed = True


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not strict JSON")


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    with RunLog(tmp_path, {}, total=1, title="PPO", console=quiet()) as log:
        log.write({"update": 1, "loss/policy": math.nan, "loss/value": -math.inf, "loss/kl": 0.5})
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (row["loss/policy"], row["loss/value"], row["loss/kl"]) == (None, None, 0.5)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_alarms_go_into_the_row_and_onto_the_console(tmp_path: Path, is_terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, color_system=None, width=300)
    alarm = Alarm("entropy collapse", 2, "entropy is [0.01] nats")
    with RunLog(tmp_path, {}, total=3, title="PPO", console=console) as log:
        for update in (1, 2, 3):
            log.write({"update": update}, [alarm] if update == 2 else [])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("alarms") for row in rows] == [
        None,
        [{"name": "entropy collapse", "message": "entropy is [0.01] nats"}],
        None,
    ]
    assert screen.getvalue().count("update 2: entropy collapse: entropy is [0.01] nats") == 1


def test_trackers_get_the_metrics_and_are_closed_even_when_one_fails(tmp_path: Path) -> None:
    class Broken(Recorder):
        def close(self) -> None:
            raise OSError("disk full")

    recorders = [Recorder(), Broken(), Recorder()]
    alarm = Alarm("non-finite", 1, "loss/policy is nan")
    log = RunLog(tmp_path, {}, total=1, title="PPO", console=quiet(), trackers=recorders)
    with pytest.raises(OSError, match="disk full"), log:
        log.write({"update": 1, "loss/policy": math.inf}, [alarm])
    for recorder in recorders:
        ((update, metrics),) = recorder.told
        assert update == 1
        assert metrics.keys() == {"loss/policy", "time/seconds"}
        assert metrics["loss/policy"] == math.inf
    assert recorders[0].is_closed
    assert recorders[2].is_closed
    with pytest.raises(ValueError, match="closed file"):
        log.write({"update": 2})


def test_a_disabled_log_leaves_no_trace(tmp_path: Path) -> None:
    screen = io.StringIO()
    recorder = Recorder()
    console = Console(file=screen, force_terminal=True)
    with RunLog(tmp_path / "run", {}, total=1, title="PPO", console=console, trackers=[recorder], enabled=False) as log:
        log.write({"update": 1}, [Alarm("non-finite", 1, "loss/policy is nan")])
        log.rewind(0)
        assert log.seconds >= 0
    assert not list(tmp_path.iterdir())
    assert not screen.getvalue()
    assert not recorder.told


class TestResume:
    @pytest.mark.parametrize("torn", ["", '{"update": 6, "rollo', '{"update": 6}', "\x00\x00"])
    def test_rows_up_to_the_state_stay_and_the_rest_is_written_anew(self, tmp_path: Path, torn: str) -> None:
        lines = write_run(tmp_path)
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(torn)
        resumed = write_run(tmp_path, updates=6, finished=3)
        assert resumed[:3] == lines[:3]
        assert [json.loads(line)["update"] for line in resumed] == [1, 2, 3, 4, 5, 6]
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}

    def test_time_goes_on_from_the_last_row_that_stays(self, tmp_path: Path) -> None:
        write_run(tmp_path, updates=2)
        path = tmp_path / "metrics.jsonl"
        rows = [
            {**json.loads(line), "time/seconds": 1000.0 * i} for i, line in enumerate(path.read_text().splitlines())
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seconds = [json.loads(line)["time/seconds"] for line in write_run(tmp_path, updates=4, finished=2)]
        assert seconds[:2] == [0.0, 1000.0]
        assert 1000.0 <= seconds[2] <= seconds[3] < 2000.0

    def test_a_new_run_in_the_same_folder_begins_anew(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        assert [json.loads(line)["update"] for line in write_run(tmp_path, updates=2)] == [1, 2]
        assert "\n" not in json.loads((tmp_path / "config.json").read_text())["command"]

    def test_the_configuration_keeps_the_first_command_and_lists_the_others(self, tmp_path: Path) -> None:
        write_run(tmp_path, updates=1)
        first = json.loads((tmp_path / "config.json").read_text())
        for finished in (1, 3):
            write_run(tmp_path, updates=finished + 2, finished=finished)
        config = json.loads((tmp_path / "config.json").read_text())
        began, *resumed = config["command"].splitlines()
        assert began == first["command"]
        assert [line.partition("  # ") for line in resumed] == [
            (first["command"], "  # ", "after update 1"),
            (first["command"], "  # ", "after update 3"),
        ]
        assert config["seed"] == 1

    @pytest.mark.parametrize("line", ["{", "[]", '{"update": 2}', '{"update": "x", "time/seconds": 1}', "null"])
    def test_a_damaged_row_is_named_and_nothing_is_lost(self, tmp_path: Path, line: str) -> None:
        lines = write_run(tmp_path)
        damaged = "\n".join([lines[0], line, *lines[2:], ""])
        (tmp_path / "metrics.jsonl").write_text(damaged)
        with pytest.raises(SearchGymError, match=r"metrics\.jsonl, line 2"):
            write_run(tmp_path, updates=6, finished=3)
        assert (tmp_path / "metrics.jsonl").read_text() == damaged

    def test_a_damaged_configuration_is_named(self, tmp_path: Path) -> None:
        write_run(tmp_path)
        (tmp_path / "config.json").write_text("[]")
        with pytest.raises(SearchGymError, match=r"config\.json"):
            write_run(tmp_path, updates=6, finished=3)

    def test_updates_that_wrote_no_row_are_not_missed(self, tmp_path: Path) -> None:
        screen = io.StringIO()
        for finished, updates in ((0, (1, 3)), (4, (5, 6))):
            console = Console(file=screen, width=200)
            with RunLog(tmp_path, {}, total=6, title="DAPO", console=console, finished=finished) as log:
                for update in updates:
                    log.write({"update": update})
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [row["update"] for row in rows] == [1, 3, 5, 6]
        assert "lost" not in screen.getvalue()
        assert "DAPO 6/6" in screen.getvalue()

    @pytest.mark.parametrize("lost", ["metrics.jsonl", "config.json"])
    def test_a_file_that_is_gone_does_not_stop_the_run(self, tmp_path: Path, lost: str) -> None:
        write_run(tmp_path)
        (tmp_path / lost).unlink()
        updates = [json.loads(line)["update"] for line in write_run(tmp_path, updates=6, finished=5)]
        assert updates == ([6] if lost == "metrics.jsonl" else [1, 2, 3, 4, 5, 6])
        assert (tmp_path / "config.json").exists()


def test_what_a_run_gives_up_when_it_goes_back_is_kept_beside(tmp_path: Path) -> None:
    alarm = Alarm("reward collapse", 4, "exact match has been 0")
    with RunLog(tmp_path, {}, total=5, title="PPO", console=quiet()) as log:
        for update in (1, 2, 3, 4):
            log.write({"update": update, "rollout/em": math.nan}, [alarm] if update == 4 else [])
        before = log.seconds
        log.rewind(2)
        assert log.seconds >= before
        log.write({"update": 3, "rollout/em": 0.5})
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    given_up = [json.loads(line) for line in (tmp_path / "abandoned.jsonl").read_text().splitlines()]
    assert [(row["update"], row["rollout/em"]) for row in kept] == [(1, None), (2, None), (3, 0.5)]
    assert [(row["update"], "alarms" in row) for row in given_up] == [(3, False), (4, True)]
