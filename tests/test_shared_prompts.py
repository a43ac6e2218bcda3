"""The comparison of updates with and without shared prompts compares the same update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.shared_prompts import SharedPromptsConfig, main


def test_sharing_a_prompt_changes_no_loss_and_no_gradient(tmp_path: Path) -> None:
    config = SharedPromptsConfig(
        groups=2, group_size=3, prompt_tokens=6, tokens=20, rounds=1, output=tmp_path / "shared.json"
    )
    results = main(config)
    assert results["loss_difference"] < 1e-5
    assert results["gradient_difference"] < 1e-5
    assert results["tokens_saved"] == pytest.approx(2 / 3 * 6 / 20)
    assert json.loads(config.output.read_text()) == results
