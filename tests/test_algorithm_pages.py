"""The results on the pages of docs/algorithms are those that were measured, and nothing else of a page changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import algorithms
from benchmarks.algorithm_pages import BEGIN, END, PAGES, SEEDS, PageError, main, results_block, with_results


def run(algorithm: str, seed: int, two_hop: float) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "seed": seed,
        "em_before": {"1-hop": 0.03, "2-hop": 0.0},
        "em_after": {"1-hop": 1.0, "2-hop": two_hop},
        "searches": {"all": 1.5, "1-hop": 1.0, "2-hop": 2.0},
        "train_seconds": 168.9,
        "train_cpu_seconds": 105.1,
    }


def measured(*results: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.seeds --num-seeds 3",
        "machine": {"system": "Linux", "architecture": "x86_64", "cpus": 2},
        "torch": "2.13.0",
        "preset": "default",
        "goal": 0.9,
        "results": list(results),
    }


SEEDS_OF_TWO = measured(run("grpo", 2, 0.89), run("ppo", 1, 0.5), run("grpo", 1, 0.9))
TEXT = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]))


def test_a_block_holds_the_runs_of_its_algorithm_in_the_order_of_seeds() -> None:
    block = results_block(SEEDS_OF_TWO, "grpo")
    rows = [line for line in block.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == [
        "| 1 | 0.03 | 0.00 | 1.00 | 0.90 | 1.50 | 169 | 105 |",
        "| 2 | 0.03 | 0.00 | 1.00 | 0.89 | 1.50 | 169 | 105 |",
    ]
    assert "1 of 2 seeds reach 0.90" in block  # 0.89 is below the goal, 0.90 is not
    assert f"`{SEEDS_OF_TWO['command']}`" in block
    header, rule = (line for line in block.splitlines() if line.startswith("|") and not line[2].isdigit())
    assert header.count("|") == rule.count("|") == rows[0].count("|")


@pytest.mark.parametrize("seeds", [measured(), SEEDS_OF_TWO], ids=["no run", "runs of others"])
def test_what_was_not_measured_is_said_to_be_so(seeds: dict[str, Any]) -> None:
    assert results_block(seeds, "rloo") == "Not measured: `benchmarks/results/seeds.json` holds no run of `rloo`."


@given(before=TEXT, old=TEXT, new=TEXT, after=TEXT)
def test_only_what_is_between_the_markers_changes(before: str, old: str, new: str, after: str) -> None:
    page = with_results(f"{before}{BEGIN}{old}{END}{after}", new)
    assert page == f"{before}{BEGIN}\n{new}\n{END}{after}"
    assert with_results(page, new) == page


@pytest.mark.parametrize("page", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_a_place_for_results_is_an_error(page: str) -> None:
    with pytest.raises(PageError, match="markers"):
        with_results(page, "results")


def test_no_page_is_changed_when_one_is_wrong(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds.json"
    seeds.write_text(json.dumps(SEEDS_OF_TWO), encoding="utf-8")
    for name in algorithms.names():
        (tmp_path / f"{name}.md").write_text(f"# {name}\n{BEGIN}\n{END}\n", encoding="utf-8")
    last = tmp_path / f"{algorithms.names()[-1]}.md"
    last.unlink()
    with pytest.raises(PageError, match=last.name):
        main(tmp_path, seeds)
    assert (tmp_path / "grpo.md").read_text(encoding="utf-8") == f"# grpo\n{BEGIN}\n{END}\n"

    last.write_text(f"{BEGIN}\n{END}\n", encoding="utf-8")
    main(tmp_path, seeds)
    assert "1 of 2 seeds" in (tmp_path / "grpo.md").read_text(encoding="utf-8")
    assert "Not measured" in (tmp_path / "gspo.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", algorithms.names())
def test_the_pages_say_what_was_measured(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    block = results_block(json.loads(SEEDS.read_text(encoding="utf-8")), name)
    assert with_results(page, block) == page, "run python -m benchmarks.algorithm_pages"
