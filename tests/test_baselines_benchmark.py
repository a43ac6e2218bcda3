"""The table of methods: rows that are kept, cells and intervals that follow from the scores of single questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import baselines
from benchmarks.baseline_methods import METHODS, Reinforced, Size, StableBaselines
from benchmarks.baselines import BaselinesConfig, compare, comparisons_table, main, page, run_method, summarise, table
from search_gym.errors import OptionError, UnknownNameError

ROOT = Path(__file__).parents[1]
SMALL = Size(questions_per_kind=12, demonstrations=8)


def result(method, em, seed=1, searches=1.0):
    kinds = ["1-hop", "2-hop"] * (len(em) // 2)
    scores = [{"em": e, "searches": searches, "sampled_tokens": 10.0 * seed} for e in em]
    return {
        "method": method,
        "seed": seed,
        "kinds": kinds,
        "scores": scores,
        "train_seconds": 2.0 * seed,
        "train_cpu_seconds": 1.0 * seed,
    }


def test_every_row_can_be_evaluated_and_every_comparison_is_of_rows():
    assert {name for pair in baselines.COMPARED for name in pair} <= set(METHODS)
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", ["baselines", "sb3"])
def test_the_page_has_the_rows_that_were_measured(name):
    kept = baselines.BaselinesConfig.output.with_name(f"{name}.json")
    summary = json.loads((ROOT / kept).read_text(encoding="utf-8"))
    rows = table(summary["rows"], summary["demonstrations"]).splitlines()
    lines = (ROOT / "docs/baselines_training.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 2
    assert set(rows) <= set(lines)


@pytest.mark.parametrize("name", ["single-search", "oracle", "base", "direct"])
def test_a_row_has_a_score_for_every_question(tmp_path, name):
    found = run_method(SMALL, name, 1, tmp_path / name)
    assert found["kinds"].count("1-hop") == found["kinds"].count("2-hop") == 12
    em = [row["em"] for row in found["scores"]]
    if name == "oracle":
        assert em == [1.0] * 24
    if name == "single-search":
        assert em == [1.0 if kind == "1-hop" else 0.0 for kind in found["kinds"]]
    if name == "direct":
        assert found["train_cpu_seconds"] > 0
        assert [row["searches"] for row in found["scores"]] == [0.0] * 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in METHODS if not isinstance(METHODS[name].run, (Reinforced, StableBaselines))]
)
def test_every_supervised_method_runs(tmp_path, name):
    method = METHODS[name].run
    if name.startswith("rejection"):
        method = replace(method, rounds=1, questions_per_round=256, samples_per_question=4)
    found = method(SMALL, 1, tmp_path)
    assert len(found.scores) == len(found.kinds) == 24


def test_a_finished_row_is_kept_and_rows_of_other_options_are_not_mixed(tmp_path):
    first = run_method(SMALL, "oracle", 1, tmp_path)
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**first, "train_seconds": 123.0}))
    assert run_method(SMALL, "oracle", 1, tmp_path)["train_seconds"] == 123.0
    with pytest.raises(OptionError, match="do: choose another --work-dir, or delete the folder"):
        run_method(replace(SMALL, hops=3), "oracle", 1, tmp_path)


def test_seeds_are_averaged_question_by_question():
    row = summarise([result("ppo", [1, 0, 1, 1]), result("ppo", [1, 1, 0, 0], seed=2, searches=2.0)])
    assert row["seeds"] == [1, 2]
    assert row["metrics"]["1-hop"]["em"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert row["metrics"]["2-hop"]["em"]["mean"] == pytest.approx((0.5 + 0.5) / 2)
    assert row["metrics"]["all"]["searches"]["mean"] == 1.5
    assert row["em_of_seeds"] == [{"1-hop": 1.0, "2-hop": 0.5}, {"1-hop": 0.5, "2-hop": 0.5}]
    assert (row["train_seconds"], row["train_cpu_seconds"]) == (3.0, 1.5)
    # Both 2-hop questions have the same mean over seeds, so their interval has no width.
    assert row["metrics"]["2-hop"]["em"]["low"] == row["metrics"]["2-hop"]["em"]["high"] == 0.5


def test_a_comparison_is_paired():
    rng = np.random.default_rng(0)
    em = rng.integers(0, 2, size=40).astype(float)
    same = compare([result("ppo", em)], [result("static-rag-ppo", em)])
    assert same["em"]["1-hop"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    gain = np.where(np.arange(40) % 2 == 1, 1.0, 0.0)  # one more on every 2-hop question
    better = compare([result("ppo", gain)], [result("static-rag-ppo", np.zeros(40))])
    assert better["em"]["2-hop"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert better["em"]["1-hop"]["mean"] == 0.0
    assert (better["method"], better["minus"]) == ("ppo", "static-rag-ppo")
    assert "| Search-R1, PPO | static RAG, k = 1, PPO | +0.00 [+0.00, +0.00] | +1.00 [+1.00, +1.00] |" in (
        comparisons_table([better])
    )


def test_the_table_has_a_row_for_each_method_and_no_number_that_was_not_measured():
    rows = [summarise([result("react", [1, 1, 1, 1])])]
    scripted = {**result("oracle", [1, 1]), "train_seconds": 0.0, "train_cpu_seconds": 0.0}
    scripted["scores"] = [{"em": 1.0}, {"em": 1.0}]
    rows.append(summarise([scripted]))
    assert table(rows, 3500).splitlines() == [
        "| method | trained on | 1-hop EM | 2-hop EM | searches | tokens | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|",
        "| ReAct | SFT on 3,500 demonstrations of the form | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 1.0 | 10.0 | 1 |",
        "| a search a hop by a program |  | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |  |  |  |",
    ]
    text = page({"command": "python x", "rows": rows, "demonstrations": 3500, "comparisons": []})
    assert text.startswith("Made by `python x`.\n\n| method |")


def test_a_run_writes_both_files_and_goes_on_where_it_stopped(tmp_path, capsys):
    config = BaselinesConfig(
        methods=("oracle", "single-search"),
        size=SMALL,
        jobs=1,
        output=tmp_path / "out/baselines.json",
        work_dir=tmp_path / "runs",
    )
    summary = main(config)
    assert json.loads(config.output.read_text()) == summary
    assert [row["method"] for row in summary["rows"]] == ["oracle", "single-search"]
    assert summary["questions_per_kind"] == 12
    assert config.output.with_suffix(".md").read_text() in capsys.readouterr().out
    finished = tmp_path / "runs/oracle-1/result.json"
    finished.write_text(json.dumps({**json.loads(finished.read_text()), "train_cpu_seconds": 7.0}))
    assert main(config)["rows"][0]["train_cpu_seconds"] == 7.0


def test_bad_options_are_refused():
    with pytest.raises(UnknownNameError, match=r"expected one of .* as method, got 'reakt'; did you mean 'react'"):
        main(BaselinesConfig(methods=("reakt",)))
    with pytest.raises(OptionError, match="expected jobs >= 1, got 0"):
        main(BaselinesConfig(jobs=0))
    with pytest.raises(OptionError, match="expected demonstrations >= 1, got 0"):
        main(BaselinesConfig(size=replace(SMALL, demonstrations=0)))
