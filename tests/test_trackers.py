"""What trackers are told is read back from their own files, once for each update, also after an interruption."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from agents import trackers
from agents.trackers import Tracker, make_tracker
from search_gym.errors import MissingDependencyError, SearchGymError, UnknownNameError

CONFIG = {"seed": 3, "env": {"kinds": ["1-hop", "2-hop"], "top_k": 3}}
Told = dict[int, dict[str, float]]


def metrics(update: int, attempt: int) -> dict[str, float]:
    """Numbers that say which update of which attempt they belong to, exact in 32 bits."""
    return {"rollout/em": update / 64, "loss/policy": update + attempt / 8}


def tell(tracker: Tracker, updates: range, attempt: int = 0) -> None:
    for update in updates:
        tracker.write(update, metrics(update, attempt))


def read_tensorboard(run_dir: Path) -> Told:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    told: Told = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            row = told.setdefault(event.step, {})
            assert name not in row, "told twice"
            row[name] = event.value
    return told


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: 7 bytes, then a LevelDB log of protocol buffers, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            yield parsed
            record = b""


def finished_run(path: Path) -> list[Any]:
    """The records of a run, once the process that writes them has put the last one there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        records = list(wandb_records(path))
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.02)
    raise TimeoutError(f"{path} is not finished")


def read_wandb(run_dir: Path) -> Told:
    told: Told = {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for record in finished_run(path):
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in record.history.item}
                row = {name: value for name, value in items.items() if not name.startswith("_")}
                assert items["_step"] not in told, "told twice"
                told[items["_step"]] = row
    return told


def trackio_rows(run_dir: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(run_dir.parent / "trackio" / "search-gym.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def read_trackio(run_dir: Path) -> Told:
    rows = trackio_rows(run_dir, "SELECT step, metrics FROM metrics")
    assert len({step for step, _ in rows}) == len(rows), "told twice"
    return {step: json.loads(row) for step, row in rows}


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "trackio": read_trackio}


@pytest.fixture(params=list(READERS))
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each tracker whose package is installed, told to stay on this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip(request.param)
    if request.param == "trackio":  # it reads its folder from the environment when it is imported
        import trackio.sqlite_storage
        import trackio.utils

        for module in (trackio, trackio.utils, trackio.sqlite_storage):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    return request.param


def test_every_update_is_told_once(tmp_path: Path, name: str) -> None:
    tracker = make_tracker(name, tmp_path / "run", CONFIG)
    tell(tracker, range(1, 4))
    tracker.close()
    assert READERS[name](tmp_path / "run") == {update: metrics(update, 0) for update in (1, 2, 3)}


def test_an_interrupted_run_repeats_no_update(tmp_path: Path, name: str) -> None:
    """Updates 1 to 4 were told, 1 to 2 are kept; TensorBoard takes 3 and 4 back, the others keep what they have."""
    for finished, updates, attempt in ((0, range(1, 5), 0), (2, range(3, 7), 1)):
        tracker = make_tracker(name, tmp_path / "run", CONFIG, finished=finished)
        tell(tracker, updates, attempt)
        tracker.close()
    last_of_first = 2 if name == "tensorboard" else 4
    assert READERS[name](tmp_path / "run") == {
        update: metrics(update, int(update > last_of_first)) for update in range(1, 7)
    }


def test_a_run_that_goes_back_repeats_no_update(tmp_path: Path, name: str) -> None:
    tracker = make_tracker(name, tmp_path / "run", CONFIG)
    tell(tracker, range(1, 5))
    tell(tracker, range(2, 6), attempt=1)
    tracker.close()
    last_of_first = 1 if name == "tensorboard" else 4
    assert READERS[name](tmp_path / "run") == {
        update: metrics(update, int(update > last_of_first)) for update in range(1, 6)
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_arrives(tmp_path: Path, value: float) -> None:
    pytest.importorskip("tensorboard")
    tracker = make_tracker("tensorboard", tmp_path, CONFIG)
    tracker.write(1, {"loss/policy": value})
    tracker.close()
    assert str(read_tensorboard(tmp_path)[1]["loss/policy"]) == str(value)


def test_what_was_written_before_a_kill_is_there(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    program = (
        "import os, signal, sys; from pathlib import Path; from agents.trackers import make_tracker\n"
        "tracker = make_tracker('tensorboard', Path(sys.argv[1]), {})\n"
        "for update in (1, 2, 3): tracker.write(update, {'rollout/em': update / 4})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[1], check=False)
    tracker = make_tracker("tensorboard", tmp_path, CONFIG, finished=3)
    tracker.write(4, {"rollout/em": 1.0})
    tracker.close()
    assert read_tensorboard(tmp_path) == {update: {"rollout/em": update / 4} for update in (1, 2, 3, 4)}


def test_two_runs_in_one_folder_are_two_runs_for_a_host(tmp_path: Path, name: str) -> None:
    """A run that starts again from nothing is a new one; TensorBoard's folder shows the newer."""
    identities = []
    for attempt in (0, 1):
        tracker = make_tracker(name, tmp_path / "run", CONFIG)
        tell(tracker, range(1, 3), attempt)
        tracker.close()
        if name != "tensorboard":
            identities.append(json.loads((tmp_path / "run" / f"{name}.json").read_text())["run_id"])
    if name == "tensorboard":
        assert read_tensorboard(tmp_path / "run") == {update: metrics(update, 1) for update in (1, 2)}
    else:
        assert identities[0] != identities[1]


def test_the_configuration_is_told(tmp_path: Path, name: str) -> None:
    tracker = make_tracker(name, tmp_path / "run", CONFIG)
    tell(tracker, range(1, 2))
    tracker.close()
    if name == "tensorboard":
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = accumulators.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
        events.Reload()
        (event,) = events.Tensors("config/text_summary")
        text = event.tensor_proto.string_val[0].decode()
        assert json.loads(text.removeprefix("```json\n").removesuffix("\n```")) == CONFIG
    elif name == "wandb":
        (path,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
        updates = [u for record in finished_run(path) if record.HasField("run") for u in record.run.config.update]
        found: Mapping[str, Any] = {update.key: json.loads(update.value_json) for update in updates}
        assert {key: found[key] for key in CONFIG} == CONFIG
    else:
        ((config,),) = trackio_rows(tmp_path / "run", "SELECT config FROM configs")
        assert {key: json.loads(config)[key] for key in CONFIG} == CONFIG


class TestMisuse:
    def test_an_unknown_name_gets_a_suggestion(self, tmp_path: Path) -> None:
        with pytest.raises(UnknownNameError, match="did you mean 'tensorboard'"):
            make_tracker("tensorbord", tmp_path, CONFIG)
        with pytest.raises(UnknownNameError, match="known names: tensorboard, wandb, trackio"):
            make_tracker("x", tmp_path, CONFIG)

    def test_a_package_that_is_not_installed_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.setattr(sys, "path_importer_cache", {})
        with pytest.raises(MissingDependencyError, match=rf"{name}.*search-gym\[tracking\]"):
            make_tracker(name, tmp_path, CONFIG)

    @pytest.mark.parametrize("content", ["", "[]", '{"run_id": "x"}'])
    def test_a_damaged_memory_is_named(self, tmp_path: Path, content: str) -> None:
        pytest.importorskip("wandb")
        (tmp_path / "wandb.json").write_text(content)
        with pytest.raises(SearchGymError, match=r"wandb\.json"):
            make_tracker("wandb", tmp_path, CONFIG, finished=3)

    def test_every_name_is_tested(self) -> None:
        assert READERS.keys() == trackers._MAKERS.keys()
