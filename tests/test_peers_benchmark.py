"""The comparison with other libraries: our contestants play, its summaries are right, its tables say what is there."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks.peers import episode, report, venvs
from benchmarks.peers.__main__ import PeersConfig, main, summary
from benchmarks.peers.contestants import CONTESTANTS, SearchGym
from benchmarks.peers.episode import Server
from benchmarks.peers.worker import SERVERS

ROOT = Path(__file__).parents[1]


def test_what_is_measured_is_written_and_tabulated(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.START}\nold\n{report.STOP}\nafter\n", encoding="utf-8")
    names = ("search_gym, token ids", "search_gym, text", "GEM")
    output, plot = tmp_path / "peers.json", tmp_path / "peers.png"
    main(PeersConfig(2, 3, 0, names, tmp_path / "no-environments", output, plot, page), ["--rounds", "2"])
    result = json.loads(output.read_text())
    assert result["command"] == "python -m benchmarks.peers --rounds 2"
    assert list(result["contestants"]) == list(names[:2])
    assert result["left_out"] == {"GEM": "no environment: python -m benchmarks.peers.venvs --names gem"}
    ours = result["contestants"]["search_gym, token ids"]
    assert ours["same_in_chunks"] is True
    assert result["contestants"]["search_gym, text"]["same_in_chunks"] is False
    by_server = ours["vector_milliseconds"]["SearchVectorEnv, one request"]
    assert set(by_server) == set(SERVERS)
    assert by_server["one query at a time"]["median"] > 160
    assert by_server["one request at a time"]["median"] > 10
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert report.table(result) in text
    assert plot.stat().st_size > 1000


def test_the_interval_is_around_the_median() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 9.0, 4.0, 7.0]
    found = summary(values)
    assert found["median"] == statistics.median(values)
    assert min(values) <= found["low"] < found["median"] < found["high"] <= max(values)
    assert summary([2.0, 2.0]) == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_a_server_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(episode.time, "sleep", slept.append)
    for server in (Server(), Server(0.01), Server(0.01, serial=True), Server(0.01, per_query=True)):
        server.wait(16)
    assert slept == [0.01, 0.01, 0.16]


def test_all_searches_of_a_step_are_one_request_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    server = Server()
    monkeypatch.setattr(server, "wait", asked.append)
    (step,) = SearchGym(server).vectors().values()
    step()
    assert asked == [episode.NUM_SLOTS]


def test_every_peer_has_a_table_and_its_test_a_file() -> None:
    tables = venvs.peers()
    assert {peer for peer, _ in CONTESTANTS.values() if peer is not None} <= set(tables)
    for table in tables.values():
        assert all("==" in package for package in (*table["packages"][:1], *table.get("alone", [])))
        assert "test" not in table or (ROOT / "tests" / table["test"]).is_file()
    written = {path.name for path in (ROOT / "tests").glob("test_adapter_*.py")} - {
        "test_adapter_sb3.py",
        "test_adapter_trl.py",
    }
    assert written == {table["test"] for table in tables.values() if "test" in table}
