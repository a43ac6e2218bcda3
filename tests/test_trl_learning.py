"""TRL's trainer learns to search through the adapter, and the page says what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.pages import put
from benchmarks.trl_learning import MODULE, OURS, PAGE, TRL, LearningConfig, figures, main, table, times_as_long
from search_gym.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
CONFIG = LearningConfig(updates=12, questions_per_kind=100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'")
def test_both_trainers_learn_to_search(tmp_path: Path) -> None:
    result = main(replace(CONFIG, output=tmp_path / "trl.json"))
    assert result == json.loads((tmp_path / "trl.json").read_text(encoding="utf-8"))
    assert result["before"]["questions"] == 100
    assert result["before"]["em"]["mean"] < 0.1
    for name in (OURS, TRL):
        row = result["trained"][name]
        assert row["after"]["em"]["low"] > 0.5
        assert len(row["em_of_updates"]) == CONFIG.updates
        assert row["em_of_updates"][0] < 0.2
        assert max(row["em_of_updates"]) > 0.5


def test_without_trl_it_says_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(MissingDependencyError, match=r"pip install 'search-gym\[trl\]'"):
        main(replace(CONFIG, trl_python=python))


def test_figures_follow_from_the_reports() -> None:
    ours = [{"em": 0.25, "sampled_tokens": 20.0, "wall": w, "cpu": 1.0} for w in (1.0, 2.0)]
    theirs = [{"em": 0.5, "sampled_tokens": 30.0, "wall": w, "cpu": 3.0} for w in (4.0, 2.0)]
    assert figures(ours) == {
        "em_of_updates": [0.25, 0.25],
        "sampled_tokens": 20.0,
        "wall_seconds": 3.0,
        "cpu_seconds": 2.0,
    }
    found = times_as_long(ours, theirs)
    assert found["wall"]["all"] == 2.0  # 6 s over 3 s
    assert found["wall"]["update"]["highest"] == 4.0
    assert found["wall"]["update"]["lowest"] == 1.0
    assert found["cpu"]["update"]["median"] == 3.0


def test_the_page_shows_what_was_measured() -> None:
    result = json.loads((ROOT / LearningConfig.output).read_text(encoding="utf-8"))
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert put(page, "figures", MODULE, table(result)) == page
    assert result["before"]["em"]["mean"] < 0.1 < 0.5 < result["trained"][TRL]["after"]["em"]["low"]
