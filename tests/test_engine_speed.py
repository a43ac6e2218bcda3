"""The benchmark of engines runs on a CPU, at a small size, and the page shows what its file holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine_page import SCALE_PAGE, SPEED_PAGE, gpu_hours, table, write_pages
from benchmarks.engine_speed import RESULTS, EngineSpeedConfig, main, measured_before
from benchmarks.shapes import CLOSES, UniformCodec
from search_gym.tags import closes_turn

SMALL = {
    "shape": "small",
    "device": "cpu",
    "slots": 4,
    "context": 24,
    "tokens": 8,
    "update_rows": 4,
    "update_tokens": 24,
}


def test_the_pages_are_made_from_the_file(tmp_path: Path) -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    pages = [tmp_path / "speed.md", tmp_path / "scale.md"]
    for page, source in zip(pages, (SPEED_PAGE, SCALE_PAGE), strict=True):
        page.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    write_pages(results, *pages)
    for page, source in zip(pages, (SPEED_PAGE, SCALE_PAGE), strict=True):
        assert page.read_text(encoding="utf-8") == source.read_text(encoding="utf-8")
    assert results["device"] in table(results)


def test_gpu_hours_are_those_of_the_paper_s_rounds() -> None:
    """500 rounds of 512 prompts, five rollouts each with GRPO; 32 rollouts in 16 s are half a second each."""
    row = {"rollouts": 32, "rollout_seconds": 4.0, "update_seconds": 12.0}
    assert gpu_hours("PPO", row) == pytest.approx(500 * 512 * 0.5 / 3600)
    assert gpu_hours("GRPO", row) == pytest.approx(5 * gpu_hours("PPO", row))


def test_parts_measured_before_on_the_same_device_stay(tmp_path: Path) -> None:
    path, where = tmp_path / "speed.json", {"device": "one", "torch": "2"}
    assert measured_before(path, where) == {}
    path.write_text(json.dumps({**where, "decode": {"ratio": 3}}), encoding="utf-8")
    assert measured_before(path, where) == {"decode": {"ratio": 3}}
    assert measured_before(path, {**where, "device": "another"}) == {}


def test_the_parts_measure_and_agree_on_a_cpu(tmp_path: Path) -> None:
    config = EngineSpeedConfig(parts=("check", "decode", "update"), output=tmp_path / "speed.json", **SMALL)
    results = main(config)
    assert json.loads(config.output.read_text(encoding="utf-8")) == results
    assert results["check"]["episodes_that_differ"] == 0
    assert results["check"]["largest_logprob_difference"] < 1e-4
    for part, name in (("decode", "tokens_per_second"), ("update", "ours_tokens_per_second")):
        assert results[part][name] > 0
    assert len(table(results).splitlines()) == 7


def test_what_fails_is_said_and_the_rest_is_measured(tmp_path: Path) -> None:
    options = {**SMALL, "tokens": 0}
    results = main(EngineSpeedConfig(parts=("decode", "update"), output=tmp_path / "speed.json", **options))
    assert "failed" in results["decode"]
    assert results["update"]["plain_tokens_per_second"] > 0


def test_a_token_in_so_many_closes_a_search() -> None:
    codec = UniformCodec(512)
    closing = [token for token in range(512) if closes_turn(codec.decode(np.array([token])))]
    assert len(closing) == pytest.approx(512 / CLOSES)
    assert not set(codec.encode("any text at all" * 50).tolist()) & set(closing)
