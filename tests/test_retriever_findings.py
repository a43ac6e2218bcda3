"""What is made of runs with different retrievers: every statistic against its closed form or its table."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from agents.evaluate import Estimate
from benchmarks.retriever_findings import (
    BETTER,
    LATE,
    REACHED,
    STABLE,
    THREE,
    WINDOW,
    Setting,
    claims,
    crossed_bootstrap,
    findings,
    plain_run,
    stability,
    summarise,
    t_interval,
    t_quantile,
    trailing_mean,
    verdict,
)
from benchmarks.retriever_page import page, to_html
from benchmarks.retriever_plots import PLOTS, draw
from search_gym.errors import OptionError

QUALITY = {"random": 0.0, "noisy": 0.4, "bm25": 0.8, "dense": 0.7, "oracle": 0.9}
BONUS = {1: 0.0, 3: 0.06, 5: 0.03}


@pytest.mark.parametrize("window", [1, 3, 10])
def test_a_trailing_mean_is_the_mean_of_what_there_is(window: int) -> None:
    values = np.random.default_rng(0).random(12)
    expected = [np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(12)]
    np.testing.assert_allclose(trailing_mean(values.tolist(), window), expected, rtol=1e-12)


def test_stability_of_a_rise_a_fall_and_a_rise() -> None:
    curve = [0.0] * 20 + [0.8] * 20 + [0.2] * 20
    found = stability(curve, episodes=128)
    assert found["best"] == 0.8
    assert found["largest_fall"] == pytest.approx(0.6)
    # The mean of ten reaches 0.5 with seven times 0.8 in it: 0.56; six give 0.48.
    assert found["reached"] == 27
    assert np.mean(curve[17:27]) >= REACHED > np.mean(curve[16:26])
    assert found["area"] == pytest.approx((20 * 0.8 + 20 * 0.2) / 60, abs=1e-4)
    assert found["late_std"] == 0
    assert found["sampling_std"] == pytest.approx(math.sqrt(0.2 * 0.8 / 128), abs=1e-4)
    assert found["learned"]


def test_nothing_falls_where_nothing_rose_and_a_steady_rise_is_no_fall() -> None:
    flat = stability([0.0] * 50, episodes=128)
    assert (flat["best"], flat["largest_fall"], flat["reached"], flat["learned"]) == (0, 0, None, False)
    rise = stability([i / 50 for i in range(50)], episodes=128)
    assert rise["largest_fall"] == 0
    assert rise["late_std"] == pytest.approx(math.sqrt((LATE**2 - 1) / 12) / 50, abs=1e-4)


def test_a_curve_shorter_than_the_window_is_one_mean() -> None:
    found = stability([0.2, 0.8], episodes=128)
    assert (found["best"], found["largest_fall"], found["reached"]) == (0.5, 0, 2)


def test_the_crossed_bootstrap_has_the_variance_of_its_two_factors() -> None:
    rng = np.random.default_rng(1)
    of_seed, of_question = rng.normal(size=6), 3 * rng.normal(size=40)
    found = crossed_bootstrap(of_seed[:, None] + of_question)
    assert found.mean == pytest.approx(of_seed.mean() + of_question.mean())
    # Sums of a part for the seed and one for the question: the means of the two samples are independent.
    deviation = math.sqrt(of_seed.var() / 6 + of_question.var() / 40)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.05)


def test_what_does_not_vary_has_no_width() -> None:
    assert crossed_bootstrap(np.full((3, 20), 0.25)) == pytest.approx(Estimate(0.25, 0.25, 0.25))
    one_seed = crossed_bootstrap(np.array([[0.0, 1.0] * 50]))
    assert one_seed.high - one_seed.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Two closed forms, and the usual table.
    [
        (1, math.tan(0.475 * math.pi)),
        (2, 0.95 * math.sqrt(2 / (1 - 0.95**2))),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (10, 2.228),
        (29, 2.045),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_students_quantiles_are_those_of_the_table(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=6e-4)


def test_students_interval() -> None:
    two = t_interval([0.1, 0.3])
    assert two.mean == pytest.approx(0.2)
    assert two.high - two.mean == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert t_interval([0.5]) == Estimate(0.5, -math.inf, math.inf)
    with pytest.raises(OptionError, match="run two seeds or more"):
        t_quantile(0)


@pytest.mark.parametrize(
    ("low", "high", "sign", "expected"),
    [
        (0.1, 0.3, 1, "reproduces"),
        (0.1, 0.3, -1, "contradicts"),
        (-0.3, -0.1, -1, "reproduces"),
        (-0.3, -0.1, 1, "contradicts"),
        (-0.1, 0.3, 1, "undecided"),
        (0.0, 0.3, 1, "undecided"),
        (-math.inf, math.inf, 1, "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, sign: int, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2 if math.isfinite(low) else 0.2, low, high), sign) == expected


def run(retriever: str, top_k: int, seed: int, **changes: Any) -> dict[str, Any]:
    """A run whose exact match follows from what it was trained with, with a little of its seed."""
    em = min(1.0, QUALITY[retriever] + (BONUS[top_k] if retriever != "random" else 0.0))
    em -= 0.001 * seed * (top_k + len(retriever))
    curve = [max(0.0, em) * i / 20 for i in range(1, 21)]
    return {
        "retriever": retriever,
        "top_k": top_k,
        "seed": seed,
        "em": {where: {"1-hop": em + 0.02, "2-hop": em - 0.02} for where in ("own", "common")},
        "stability": {**stability(curve, 128), "largest_fall": round(0.5 - em / 2, 4)},
        "curves": {"em": curve},
        "alarms": [],
        "collapsed": False,
        "train_seconds": 60.0,
        "train_cpu_seconds": 50.0,
        **changes,
    }


GRID = [run(*key) for key in product(QUALITY, BONUS, (1, 2, 3))]


def find(found: list[dict[str, Any]], finding: str, metric: str, one: str, other: str) -> dict[str, Any]:
    (chosen,) = [f for f in found if (f["finding"], f["metric"], f["one"], f["other"]) == (finding, metric, one, other)]
    return chosen


def test_a_difference_is_one_of_runs_with_the_same_seed() -> None:
    found = findings(GRID)
    one = find(found, BETTER, "EM", "bm25 k=3", "noisy k=3")
    em = {
        r["seed"]: np.mean(list(r["em"]["own"].values())) for r in GRID if (r["retriever"], r["top_k"]) == ("bm25", 3)
    }
    other = {
        r["seed"]: np.mean(list(r["em"]["own"].values())) for r in GRID if (r["retriever"], r["top_k"]) == ("noisy", 3)
    }
    assert one["by_seed"] == {seed: pytest.approx(em[seed] - other[seed], abs=1e-4) for seed in (1, 2, 3)}
    assert one["difference"]["mean"] == pytest.approx(np.mean(list(one["by_seed"].values())), abs=1e-4)
    assert one["verdict"] == "reproduces"
    assert one["paper"] is None
    assert find(found, BETTER, "EM", "bm25 k=1", "random k=1")["paper"] == 0.111
    # Dense is the worse one here, which the paper says it is not.
    assert find(found, BETTER, "EM with BM25", "dense k=5", "bm25 k=5")["verdict"] == "contradicts"


def test_what_is_left_open_is_averaged_before_seeds_are() -> None:
    found = findings(GRID)
    pooled = find(found, BETTER, "EM", "oracle", "bm25")
    parts = [find(found, BETTER, "EM", f"oracle k={k}", f"bm25 k={k}")["by_seed"] for k in BONUS]
    assert pooled["by_seed"] == {seed: pytest.approx(np.mean([p[seed] for p in parts]), abs=1e-4) for seed in (1, 2, 3)}
    pooled = find(found, THREE, "EM", "k=3", "k=5")
    parts = [find(found, THREE, "EM", f"{name} k=3", f"{name} k=5")["by_seed"] for name in QUALITY]
    assert pooled["by_seed"] == {seed: pytest.approx(np.mean([p[seed] for p in parts]), abs=1e-4) for seed in (1, 2, 3)}
    assert pooled["verdict"] == "reproduces"


def test_a_run_that_never_learned_is_not_called_unstable() -> None:
    found = findings(GRID)
    assert find(found, STABLE, "largest fall", "bm25 k=3", "noisy k=3")["verdict"] == "reproduces"
    learned_nothing = find(found, STABLE, "largest fall", "bm25 k=3", "random k=3")
    assert learned_nothing["difference"]["high"] < 0
    assert learned_nothing["verdict"] == "undecided"
    assert find(found, BETTER, "EM", "bm25 k=3", "random k=3")["verdict"] == "reproduces"


def test_nothing_is_decided_by_runs_that_all_learned_nothing() -> None:
    def grid(name: str) -> list[dict[str, Any]]:
        em = {k: {where: {"2-hop": 0.01 * (k == 3)} for where in ("own", "common")} for k in (1, 3)}
        return [run(name, k, seed, em=em[k]) for k in em for seed in (1, 2)]

    (one,) = findings(grid("random"))
    assert (one["difference"]["low"], one["verdict"]) == (0.01, "undecided")
    assert findings(grid("bm25"))[0]["verdict"] == "reproduces"


def test_a_seed_counts_when_it_has_every_run_of_the_claim() -> None:
    cut = [r for r in GRID if not (r["seed"] == 3 and r["top_k"] == 5) and r["seed"] != 2]
    found = findings(cut)
    assert list(find(found, BETTER, "EM", "bm25 k=3", "noisy k=3")["by_seed"]) == [1, 3]
    assert list(find(found, BETTER, "EM", "bm25", "noisy")["by_seed"]) == [1]
    alone = find(found, BETTER, "EM", "bm25 k=5", "noisy k=5")
    assert alone["difference"]["low"] is None
    assert alone["verdict"] == "undecided"
    without_noisy = findings([r for r in GRID if r["retriever"] in ("bm25", "oracle")])
    assert not [f for f in without_noisy if "noisy" in f["other"]]


def test_only_what_there_is_is_claimed() -> None:
    assert claims(["oracle", "bm25"], [5]) == [
        claim for claim in claims(["oracle", "bm25"], [5]) if claim.one.top_k == claim.other.top_k == 5
    ]
    assert {str(claim.one) for claim in claims(["oracle", "bm25"], [5])} == {"oracle k=5"}
    both = [claim for claim in claims(["bm25"], [1, 3]) if claim.finding == THREE]
    assert [(claim.one, claim.other) for claim in both] == [(Setting("bm25", 3), Setting("bm25", 1))]


def result(seed: int, em: list[float], **changes: Any) -> dict[str, Any]:
    """What `run_cell` returns for four questions."""
    scores = {"em": em, "searches": [1.0, 2.0] * 2, "sampled_tokens": [8.0] * 4, "observation_tokens": [30.0] * 4}
    return {
        "retriever": "bm25",
        "top_k": 3,
        "seed": seed,
        "kinds": ["1-hop", "2-hop"] * 2,
        "scores": {"own": scores, "common": {**scores, "em": [0.0] * 4}},
        "scripted": {"oracle": {"1-hop": 1.0, "2-hop": 0.5}},
        "curves": {"em": [0.0] * WINDOW + [1.0] * WINDOW},
        "rollouts_per_update": 128,
        "alarms": [],
        "collapsed": False,
        "train_seconds": 2.0,
        "train_cpu_seconds": 1.0,
        **changes,
    }


def test_kinds_are_kept_apart() -> None:
    results = [result(1, [1, 0, 1, 1]), result(2, [1, 0, 0, 0])]
    row = summarise(results)
    assert row["seeds"] == [1, 2]
    assert row["own"]["em"]["1-hop"]["mean"] == 0.75
    assert row["own"]["em"]["2-hop"]["mean"] == 0.25
    assert row["own"]["searches"] == {"mean": 1.5, "low": pytest.approx(1, abs=0.3), "high": pytest.approx(2, abs=0.3)}
    assert row["common"]["em"]["1-hop"] == {"mean": 0, "low": 0, "high": 0}
    plain = plain_run(results[0])
    assert plain["em"] == {"own": {"1-hop": 1.0, "2-hop": 0.5}, "common": {"1-hop": 0.0, "2-hop": 0.0}}
    assert plain["stability"]["best"] == 1
    assert "scores" not in plain


def summary() -> dict[str, Any]:
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    kinds = {"1-hop": interval, "2-hop": interval}
    part = {"em": kinds, "searches": interval, "sampled_tokens": interval, "observation_tokens": interval}
    rows = [
        {
            "retriever": name,
            "top_k": k,
            "seeds": [1, 2, 3],
            "scripted": {"oracle": {"1-hop": 1.0, "2-hop": 0.9}},
            "own": part,
            "common": part,
        }
        for name, k in product(QUALITY, BONUS)
    ]
    return json.loads(
        json.dumps(
            {
                "command": "python -m benchmarks.retrievers --in-env",
                "machine": {"cpus": 2, "architecture": "x86_64"},
                "torch": "2",
                "planned": 45,
                "updates": 20,
                "questions_per_kind": 2,
                "rollouts_per_update": 128,
                "retrievers": {**{name: name for name in QUALITY}, "noisy": "noisy(bm25, probability=0.3)"},
                "rows": rows,
                "findings": findings(GRID),
                "runs": GRID,
            }
        )
    )


def test_the_page_has_every_finding_row_and_run() -> None:
    text = page(summary())
    tables = [
        [row.split("|")[1:-1] for row in block.split("\n")] for block in text.strip().split("\n\n") if block[0] == "|"
    ]
    for table in tables:
        assert len({len(row) for row in table}) == 1
    lines = [len(table) - 2 for table in tables]
    by_finding = [sum(f["finding"] == name for f in summary()["findings"]) for name in (BETTER, STABLE, THREE)]
    assert lines == [*by_finding, 15, 15, 15, 45]
    assert "| bm25 − noisy | EM | +0.4" in text
    # Four pairs, each for three k and their mean: random never learns, dense is worse here, two are as claimed.
    assert "Of 16 differences: reproduces 8, contradicts 4, undecided 4." in text.split(f"### {STABLE}")[1]
    assert "nan" not in text
    assert all(f"(images/{name}.png)" in text for name in PLOTS)


def test_the_report_is_one_page_of_its_own() -> None:
    html = to_html(summary())
    assert html.count("<svg") == len(PLOTS)
    assert html.count("<table") == 7
    assert "http://" not in html.replace("http://www.w3.org/", "")
    assert "https://" not in html
    assert "<code>noisy(bm25, probability=0.3)</code>" in html


def test_the_curves_drawn_are_the_means_of_their_seeds() -> None:
    figure = draw(summary())["retrievers_by_k"]()
    panel = figure.axes[1]
    assert panel.get_title(loc="left") == "k = 3"
    assert len(panel.lines) == len(QUALITY)
    curves = [r["curves"]["em"] for r in GRID if (r["retriever"], r["top_k"]) == ("noisy", 3)]
    expected = np.mean([trailing_mean(curve, WINDOW) for curve in curves], axis=0)
    np.testing.assert_allclose(np.asarray(panel.lines[1].get_ydata()), expected)
