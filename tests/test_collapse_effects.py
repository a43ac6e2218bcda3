"""Effects, indicators, published directions and the page, on simulated studies of which the truth is known."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.collapse.contrasts import algorithm_settings, contrasts, difference, level_settings
from tests.simulated_studies import CENTER, cell_of, run, study

pytest.importorskip("scipy", reason="the statistics of the study need: pip install 'search-gym[study]'")
pytest.importorskip("statsmodels", reason="the statistics of the study need: pip install 'search-gym[study]'")

from benchmarks.collapse import comparison, main_effects
from benchmarks.collapse.analysis import analyse, analysis_of, flat_policies
from benchmarks.collapse.comparison import read_claims, stretch_change, verdict
from benchmarks.collapse.definition import collapse_update
from benchmarks.collapse.effects import by_seed, has_collapsed, mean_difference, pairs_of
from benchmarks.collapse.estimates import Interval
from benchmarks.collapse.factors import CATALOGUE
from benchmarks.collapse.findings import main as write_findings
from benchmarks.collapse.findings_page import page
from benchmarks.collapse.indicators import INDICATORS, Indicator, Rule, choose, evaluate, first_alarm, halves
from benchmarks.collapse.records import load
from benchmarks.collapse.table import read_table, write_parquet

SEEDS = range(1, 7)


def cells():
    return [
        cell_of("ppo-center", "ppo", groups=("rates", "causes"), value_mask=True),
        cell_of("ppo-low", "ppo", groups=("rates",), learning_rate=1e-3, value_mask=True),
        cell_of("grpo-center", "grpo", groups=("rates", "causes")),
        cell_of("grpo-low", "grpo", groups=("rates",), learning_rate=1e-3),
        cell_of("grpo-kl", "grpo", kl="k3-loss", kl_coef=0.02),
        cell_of("grpo-top-p", "grpo", top_p=0.95),
        cell_of("ppo-top-p", "ppo", top_p=0.95, value_mask=True),
        cell_of("grpo-two", "grpo", groups=("fraction",), top_p=0.95, group_size=1),
    ]


GROUPS = [
    {"name": "rates", "design": "crossing", "factors": {"learning_rate": [4e-3, 1e-3]}},
    {"name": "causes", "design": "one-at-a-time"},
]


def simulated():
    """At the centre GRPO collapses in four seeds of six and PPO in none; KL saves all, and top-p does not matter."""
    onset = {
        "grpo-center": lambda seed: 20 + seed if seed <= 4 else None,
        "grpo-top-p": lambda seed: 21 + seed if seed <= 4 else None,
    }
    records = []
    for cell in cells()[:-1]:
        for seed in SEEDS:
            at = onset.get(cell["cell"], lambda seed: None)(seed)
            score = (0.0 if at else 0.8) + 0.01 * seed + (0.05 if cell["algorithm"] == "grpo" else 0.0)
            records.append(
                run(
                    cell["cell"],
                    seed=seed,
                    onset=at,
                    algorithm=cell["algorithm"],
                    levels=cell["levels"],
                    held_out=score,
                )
            )
    return study(cells(), records, GROUPS)


def as_json(found):
    return json.loads(json.dumps(found))


@functools.cache
def analysed():
    return as_json(analysis_of(simulated()))


def test_cells_that_differ_in_one_thing():
    assert difference({**CENTER}, {**CENTER, "kl": "k3-loss", "kl_coef": 0.02}) == ["kl"]
    assert difference({**CENTER, "value_mask": True}, CENTER) == []
    found = {(c.algorithm, c.factor, c.level): c for c in contrasts(simulated().study)}
    assert set(found) == {
        ("ppo", "learning_rate", "0.001"), ("grpo", "learning_rate", "0.001"), ("both", "learning_rate", "0.001"),
        ("grpo", "kl", "k3-loss, weight 0.02"),
        ("grpo", "top_p", "0.95"), ("ppo", "top_p", "0.95"), ("both", "top_p", "0.95"),
    }  # fmt: skip
    assert [(s.one, s.other) for s in found["both", "top_p", "0.95"].settings] == [
        ("grpo-top-p", "grpo-center"),
        ("ppo-top-p", "ppo-center"),
    ]


def test_settings_of_algorithms_and_levels():
    description = simulated().study
    assert {(s.one, s.other) for s in algorithm_settings(description, "grpo", "ppo")} == {
        ("grpo-center", "ppo-center"), ("grpo-low", "ppo-low"), ("grpo-top-p", "ppo-top-p"),
    }  # fmt: skip
    assert [s.one for s in algorithm_settings(description, "grpo", "ppo", learning_rate=1e-3)] == ["grpo-low"]
    assert [(s.one, s.other) for s in level_settings(description, "grpo", "top_p", 1.0, 0.95)] == [
        ("grpo-center", "grpo-top-p")
    ]


def test_a_preset_may_differ_in_what_it_decides():
    reference = {"preset": "search_r1", "kl_coef": 0.001}
    some = [
        cell_of("ppo", "ppo", **reference, kl="k1-reward", group_size=1),
        cell_of("grpo", "grpo", **reference, kl="k3-loss", group_size=5, top_p=0.95),
        cell_of("other", "grpo", **reference, kl="k3-loss", group_size=5, top_p=0.95, learning_rate=1e-3),
        cell_of("matched", "ppo"),
    ]
    assert [(s.one, s.other) for s in algorithm_settings({"cells": some}, "grpo", "ppo")] == [("grpo", "ppo")]


def test_effects_are_the_simulated_ones():
    found = {(row["algorithm"], row["factor"], row["level"]): row for row in analysed()["effects"]}
    saved = found["grpo", "kl", "k3-loss, weight 0.02"]
    assert saved["collapsed"] == [0, 4]
    assert saved["probability"]["estimate"] == pytest.approx(-4 / 6, abs=1e-4)
    assert saved["probability"]["high"] < 0
    assert saved["hazard_ratio"]["high"] < 1
    assert saved["p_value"] == pytest.approx(2 * 15 / 924 + 0.0, abs=0.05)
    assert saved["held_out"]["estimate"] == pytest.approx(0.8 * 4 / 6, abs=1e-4)
    assert saved["improvement"]["estimate"] > 0.5
    nothing = found["both", "top_p", "0.95"]
    assert nothing["n"] == 12
    assert nothing["probability"]["estimate"] == 0
    assert nothing["probability"]["low"] < 0 < nothing["probability"]["high"]
    assert nothing["held_out"] == {"estimate": 0.0, "low": None, "high": None}


def test_pairs_are_of_equal_seeds():
    data = simulated()
    settings = algorithm_settings(data.study, "grpo", "ppo", learning_rate=4e-3, top_p=1.0)
    pairs = pairs_of(data, settings)
    assert [(pair.one.seed, pair.other.seed) for pair in pairs] == [(seed, seed) for seed in SEEDS]
    assert by_seed(pairs, has_collapsed) == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 0.0, 6: 0.0}
    # GRPO has .05 more wherever it has not collapsed.
    assert mean_difference(pairs, "held_out").estimate == pytest.approx(0.05 - 0.8 * 4 / 6)


@pytest.mark.parametrize(
    ("missing", "seeds", "settings"),
    [
        ({"ppo-low": [1]}, [2, 3, 4, 5, 6], 3),
        ({"ppo-low": [1, 2, 3, 4]}, [1, 2, 3, 4, 5, 6], 2),
        ({"ppo-low": [1, 2, 3, 4], "ppo-top-p": [2, 3, 4, 5, 6]}, [1, 2, 3, 4, 5, 6], 1),
    ],
)
def test_every_seed_that_counts_has_every_setting(missing, seeds, settings):
    data = simulated()
    records = [record for record in data.records if record.seed not in missing.get(record.cell, [])]
    pairs = pairs_of(study(cells(), records, GROUPS), algorithm_settings(data.study, "grpo", "ppo"))
    assert list(by_seed(pairs, has_collapsed)) == seeds
    assert len({pair.setting for pair in pairs}) == settings
    assert len(pairs) == len(seeds) * settings


def test_two_seeds_of_many_settings_give_way_to_three_of_few():
    cells = [cell_of(f"{algorithm}-{k}", algorithm, top_p=k / 10) for k in range(1, 7) for algorithm in ("ppo", "grpo")]
    records = [
        run(cell["cell"], seed=seed, algorithm=cell["algorithm"], levels=cell["levels"])
        for cell in cells
        for seed in ([1, 2, 3] if cell["cell"].endswith("-1") else [1, 2])
    ]
    data = study(cells, records)
    assert len(pairs_of(data, algorithm_settings(data.study, "grpo", "ppo"))) == 3


def test_main_effects_of_a_fraction():
    """Of three crossed factors only the second matters: it halves the score, and makes every second seed collapse."""
    factors = {"algorithm": ["ppo", "grpo"], "learning_rate": [1e-3, 4e-3], "top_p": [1.0, 0.95]}
    some, records = [], []
    rng = np.random.default_rng(0)
    for algorithm in factors["algorithm"]:
        for rate in factors["learning_rate"]:
            for top_p in factors["top_p"]:
                name = f"{algorithm}-{rate}-{top_p}"
                some.append(cell_of(name, algorithm, groups=("fraction",), learning_rate=rate, top_p=top_p))
                for seed in SEEDS:
                    bad = rate == 4e-3
                    score = 0.8 - 0.4 * bad + 0.02 * seed + rng.normal(0, 0.02)
                    onset = int(rng.integers(15, 30)) if bad and seed % 2 else None
                    records.append(
                        run(
                            name, seed=seed, onset=onset, algorithm=algorithm, levels=some[-1]["levels"], held_out=score
                        )
                    )
    groups = [{"name": "fraction", "design": "fraction", "factors": factors}]
    found = main_effects.fraction(study(some, records, groups))
    rows = {row["factor"]: row for row in found["effects"]}
    assert rows["learning_rate"]["held_out"]["low"] < -0.4 < rows["learning_rate"]["held_out"]["high"]
    assert rows["learning_rate"]["held_out"]["high"] < -0.35
    assert rows["learning_rate"]["probability"]["estimate"] == pytest.approx(0.5)
    assert rows["learning_rate"]["hazard_ratio"]["low"] > 1
    assert rows["learning_rate"]["holm_held_out"] < 0.001
    for name in ("algorithm", "top_p"):
        assert rows[name]["held_out"]["low"] < 0 < rows[name]["held_out"]["high"]
        assert rows[name]["probability"]["estimate"] == pytest.approx(0.0, abs=1e-6)
    part = main_effects.fraction(study(some, [r for r in records if r.algorithm == "ppo"], groups))
    assert part["n"] == 24
    assert part["effects"] is None


def warned(lead, seed, onset, name="loss/approx_kl", updates=40):
    """A run of which a metric doubles ``lead`` updates before the mean exact match is low."""
    rng = np.random.default_rng(seed)
    values = 0.05 + rng.normal(0, 0.002, updates)
    if onset is not None and lead is not None:
        values[onset + 1 - lead :] *= 2  # the mean of five is low from the third zero on
    return run(f"cell-{seed % 2}", seed=seed, onset=onset, **{name: values})


KL = next(indicator for indicator in INDICATORS if indicator.metric == "loss/approx_kl")


def test_an_indicator_that_warns():
    """The metric doubles seven updates before the collapse. The mean of three needs one or two to be clear of noise,
    and the alarm another to last: it comes five updates before, or six."""
    records = [warned(7, seed, 20 + seed % 9 if seed % 3 else None) for seed in range(24)]
    found = evaluate(records, KL)
    assert (found["collapsed"], found["kept"]) == (16, 8)
    assert found["detection"]["estimate"] == 1.0
    assert found["false_alarms"]["estimate"] == 0.0
    assert {*found["leads"]} <= {5, 6}
    assert found["concordance"] == 1.0


def test_an_indicator_that_knows_nothing():
    records = [warned(None, seed, 20 + seed % 9 if seed % 4 < 2 else None) for seed in range(80)]
    found = evaluate(records, KL)
    merit = found["detection"]["estimate"] - found["false_alarms"]["estimate"]
    assert abs(merit) < 0.3
    assert found["detection"]["low"] < found["false_alarms"]["high"]


def test_rules_are_judged_on_seeds_that_they_have_not_seen():
    """On the first half the metric rises before collapses, on the second it falls: what was chosen fails."""
    records = []
    for seed in range(24):
        record = warned(7, seed, 25 if seed % 4 < 2 else None)
        if seed % 2:
            record.metrics["loss/approx_kl"][:] = 0.2 - record.metrics["loss/approx_kl"]
        records.append(record)
    indicator = Indicator("loss/approx_kl", "KL", (1, -1))
    assert [choose(half, indicator).direction for half in halves(records)] == [1, -1]
    assert evaluate(records, indicator)["detection"]["estimate"] < 0.3


def test_alarms_are_not_given_after_the_collapse_or_by_what_comes_later():
    record = warned(7, 1, 25)
    rule = Rule("level", 1, 0.08)
    update = first_alarm(record, "loss/approx_kl", rule)
    record.memo.clear()
    record.metrics["loss/approx_kl"][update:] = 0.0
    assert first_alarm(record, "loss/approx_kl", rule) == update
    late = warned(-8, 1, 25)
    assert first_alarm(late, "loss/approx_kl", rule) is None


def test_too_few_runs_give_counts_alone():
    found = evaluate([warned(7, seed, 25 if seed else None) for seed in range(4)], KL)
    assert found["rules"] is None
    assert (found["collapsed"], found["kept"]) == (3, 1)
    assert evaluate([run()], KL) is None


def test_verdicts():
    assert verdict(Interval(0.2, 0.1, 0.3)) == "agrees"
    assert verdict(Interval(-0.2, -0.3, -0.1)) == "contradicts"
    assert verdict(Interval(-0.2, -0.3, -0.1), -1) == "agrees"
    assert verdict(Interval(0.2, None, None)) == verdict(Interval(0.2, -0.1, 0.5)) == "undecided"


def test_published_directions_are_well_formed_and_true_to_their_sources():
    claims = read_claims()
    for claim in claims:
        assert set(claim) <= {"statement", "source", "published", "measure", "compare", "sign"}
        compared = claim["compare"]
        if "factor" in compared:
            assert all(CATALOGUE[compared["factor"]].check(level) is None for level in compared["levels"])
        if (published := claim.get("published")) is not None:
            # The difference is that of two figures which the source names in this order.
            numbers = [float(word.strip(",;:")) for word in claim["source"].split() if word.startswith(".")]
            assert published == pytest.approx(numbers[0] - numbers[1], abs=5e-4)
    assert {verdict for claim in claims for verdict in [claim["measure"]]} >= {"early", "collapse", "held_out"}


def test_comparison_follows_the_simulated_truth():
    found = {(row["statement"], row["preset"]): row for row in comparison.compare(simulated())}
    # In six seeds, 2/3 of GRPO's runs in two of three settings: differences of 2/3 in four seeds and 0 in two.
    row = found["GRPO collapses more often than PPO", "matched"]
    assert row["difference"]["estimate"] == pytest.approx(4 / 9, abs=1e-4)
    assert row["verdict"] == "agrees"
    assert all(row["preset"] != "search_r1" for row in found.values())


def test_changes_within_a_run():
    tokens = np.concatenate([np.full(13, 30.0), np.full(27, 20.0)])
    tokens[-3:] = 40.0
    record = run(onset=25, **{"rollout/sampled_tokens": tokens, "rollout/logprob_correct": np.linspace(0, -39, 40)})
    assert stretch_change(record, "rollout/sampled_tokens", "first third") == pytest.approx(
        (30 + 30 + 20) / 3 - 30 - 10 / 3 + 10 / 3
    )
    assert stretch_change(record, "rollout/sampled_tokens", "last two thirds") == pytest.approx(40 - 80 / 3)
    expected = -(record.outcome.onset - record.outcome.peak)
    assert stretch_change(record, "rollout/logprob_correct", "peak to collapse") == pytest.approx(expected)
    assert stretch_change(run(), "rollout/logprob_correct", "peak to collapse") is None


def test_flat_policies_rarely_collapse():
    rows = flat_policies(repeats=100)
    assert all(row["collapsed"] <= 0.06 for row in rows)
    assert rows[-1]["collapsed"] == 0


def test_the_page_tells_the_simulated_truth():
    text = page(analysed())
    assert "**GRPO collapses.** The lowest learning rate at which a run did is 0.004: 0 of 6 at 0.001, 4 of 6" in text
    assert "**No PPO run has collapsed.**" in text
    assert "learning rate 0.001 in the place of 0.004 (both algorithms: -0.33 [-0.60, -0.06])" in text
    assert "KL k3-loss, weight 0.02 in the place of none" in text.replace("kl k3", "KL k3")
    assert "All 42 runs of the study are finished" in text
    for word in ("nan", "None", "inf ", "Interval("):
        assert word not in text


def test_every_table_is_whole():
    text = page(analysed())
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 7
    for block in blocks:
        assert len({line.count("|") - line.count("\\|") for line in block.strip().split("\n")}) == 1


def test_a_study_that_has_hardly_begun():
    """One run: no interval, no verdict, no figure for what has no runs."""
    data = simulated()
    text = page(as_json(analysis_of(study(cells(), list(data.records[:1]), GROUPS))))
    assert "grpo" not in text.split("## Every cell")[1]
    assert "GRPO minus PPO" not in text
    assert "**No GRPO run has collapsed.**" not in text
    nothing = page(as_json(analysis_of(study(cells(), [], GROUPS))))
    assert "No run is finished" in nothing
    assert "0.00" not in nothing.split("## What a collapse is")[0]


def test_from_the_files_of_a_study(tmp_path):
    """From tables, through the commands, to the page: what the runner writes is what is read."""
    data = simulated()
    command = "python -m benchmarks.collapse --run-dir /tmp/somewhere --jobs 2"
    (tmp_path / "study.json").write_text(json.dumps(data.study | {"command": command}))
    rows, updates = [], []
    for record in data.records:
        identity = {"cell": record.cell, "algorithm": record.algorithm, "seed": record.seed}
        identity |= {f"factor.{name}": level for name, level in record.levels.items()}
        held_out = {f"held_out.{kind}": value for kind, value in record.held_out.items()}
        common = {f"held_out_common.{kind}": value for kind, value in record.held_out_common.items()}
        rows.append({**identity, "status": "finished", "commit": "abc", **held_out, **common})
        updates += [
            {**identity, "update": i + 1, "alarms": None, "rollout/em": float(em)} for i, em in enumerate(record.em)
        ]
    rows.append({"cell": "grpo-two", "algorithm": "grpo", "seed": 1, "status": "pending"})
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_parquet(tmp_path / "table.parquet", updates[::-1])
    path = analyse(tmp_path)
    found, expected = json.loads(path.read_text()), analysed()
    for part in ("cells", "effects", "algorithms", "comparison", "sensitivity", "levels"):
        assert found[part] == expected[part]
    assert found["coverage"]["runs_planned"] == 43
    output = tmp_path / "docs" / "findings.md"
    write_findings([str(tmp_path), "--output", str(output), "--keep-analysis", "--results", str(tmp_path / "kept")])
    kept = json.loads((tmp_path / "kept" / "study.json").read_text())
    assert kept["command"] == "python -m benchmarks.collapse --jobs 2"
    assert read_table(tmp_path / "kept") == read_table(tmp_path)
    assert output.read_text() == page(found)
    assert "42 of 43 runs are finished so far" in output.read_text()
    assert (tmp_path / "docs" / "images" / "collapse_survival.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="expected a study in"):
        write_findings([str(tmp_path / "docs"), "--output", str(output)])


ROOT = Path(__file__).parents[1]


def test_the_page_in_docs_is_that_of_the_results():
    """docs/findings.md is what the analysis that is kept with the results gives, to the letter."""
    kept = ROOT / "benchmarks" / "results" / "collapse" / "analysis.json"
    if not kept.is_file():
        pytest.skip("benchmarks/results/collapse/analysis.json is not there yet")
    assert (ROOT / "docs" / "findings.md").read_text(encoding="utf-8") == page(json.loads(kept.read_text()))


def test_the_figures_of_the_results_are_those_of_their_runs():
    """The counts in the kept analysis are counted again from the kept tables, in another way."""
    kept = ROOT / "benchmarks" / "results" / "collapse"
    if not (kept / "table.parquet").is_file():
        pytest.skip("benchmarks/results/collapse/table.parquet is not there yet")
    rows = [json.loads(line) for line in (kept / "runs.jsonl").read_text().splitlines()]
    finished = [row for row in rows if row["status"] == "finished"]
    curves = {(row["cell"], row["seed"]): {} for row in finished}
    for row in read_table(kept):
        curves[row["cell"], row["seed"]][row["update"]] = row["rollout/em"]
    found = json.loads((kept / "analysis.json").read_text())
    assert len(found["runs"]) == len(finished) == found["coverage"]["runs_finished"]
    for cell in found["cells"]:
        own = [curve for (name, _), curve in curves.items() if name == cell["cell"]]
        assert cell["n"] == len(own)
        if all(sorted(curve) == [*range(1, len(curve) + 1)] for curve in own if curve):
            ems = [[curve[update] for update in sorted(curve)] for curve in own if curve]
            assert cell["collapsed"] == sum(collapse_update(em) is not None for em in ems)


def test_updates_without_a_row_keep_the_exact_match_before_them(tmp_path):
    """A run that trained at its second and third update alone, and one that never did."""
    (tmp_path / "study.json").write_text(json.dumps(study(cells(), [], GROUPS).study))
    common = {"algorithm": "grpo", "status": "finished", "updates": 5, "held_out.all": 0.0}
    rows = [{**common, "cell": "grpo-two", "seed": seed} for seed in (1, 2)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = [{"cell": "grpo-two", "seed": 1, "update": i, "rollout/em": em} for i, em in ((2, 0.25), (3, 0.5))]
    write_parquet(tmp_path / "table.parquet", curve)
    found = load(tmp_path).records
    assert [record.em.tolist() for record in found] == [[0, 0.25, 0.5, 0.5, 0.5], [0, 0, 0, 0, 0]]
    assert [record.outcome.kind for record in found] == ["kept", "never learned"]
