"""Estimates, survival and hazard ratios against other packages' figures, closed forms, and simulated truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym.errors import OptionError
from tests.simulated_studies import run

pytest.importorskip("scipy", reason="the statistics of the study need: pip install 'search-gym[study]'")
pytest.importorskip("statsmodels", reason="the statistics of the study need: pip install 'search-gym[study]'")

from benchmarks.collapse.cox import Cox, hazard_ratio
from benchmarks.collapse.estimates import (
    Interval,
    bootstrap,
    bootstrap_coverage,
    fisher,
    holm,
    improvement,
    iqm,
    median_interval,
    share,
    share_difference,
    student,
)
from benchmarks.collapse.survival import kaplan_meier, log_rank, mean_survival, summary

# rliable 1.2.0 on pandas 2: aggregate_iqm and probability_of_improvement of these scores (runs, tasks).
ONES = np.array([[0.625, 0.897], [0.776, 0.225], [0.3, 0.874], [0.005, 0.821], [0.797, 0.468]])
OTHERS = np.array([[0.242, 0.223], [0.204, 0.356], [0.404, 0.443], [0.796, 0.634], [0.498, 0.791], [0.172, 0.128]])


def test_iqm_and_improvement_are_those_of_rliable():
    assert iqm(ONES) == pytest.approx(0.6311666666666667)
    assert iqm(OTHERS) == pytest.approx(0.361)
    assert improvement(ONES, OTHERS) == pytest.approx(0.7166666666666667)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_improvement_is_the_share_of_pairs(ones, others):
    shares = [(a > b) + 0.5 * (a == b) for a in ones for b in others]
    found = improvement(np.array(ones, dtype=float)[:, None], np.array(others, dtype=float)[:, None])
    assert found == pytest.approx(np.mean(shares))
    assert found + improvement(np.array(others, dtype=float)[:, None], np.array(ones, dtype=float)[:, None]) == (
        pytest.approx(1.0)
    )


def test_bootstrap_draws_whole_runs():
    """Two tasks that cancel in every run leave nothing to vary."""
    scores = np.array([[0.1, 0.9], [0.4, 0.6], [0.0, 1.0]])
    assert bootstrap(lambda x: x.mean((-2, -1)), scores) == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap(iqm, scores[:2]) == (0.5, None, None)


def test_bootstrap_of_five_runs_is_too_narrow():
    """With n values the interval is about sqrt((n - 1) / n) * 1.96 / t as wide as it should be: 63 % for five."""
    assert 0.78 < bootstrap_coverage(5) < 0.9
    assert bootstrap_coverage(5) < bootstrap_coverage(40) < 0.97


def test_student():
    values = [0.1, 0.2, 0.4]
    half = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)
    assert student(values) == pytest.approx((0.7 / 3, 0.7 / 3 - half, 0.7 / 3 + half))
    assert student([0.3]) == (0.3, None, None)
    assert student([0.3, 0.4]) == (0.35, None, None)
    assert student([0.3, 0.3]) == (0.3, None, None)


def test_shares():
    # Clopper-Pearson for none of five: 1 - 0.025 ** (1 / 5).
    assert share(0, 5) == pytest.approx((0.0, 0.0, 1 - 0.025**0.2))
    # Agresti and Caffo: Wald's interval with one success and one failure more on each side.
    middle, half = 4 / 7 - 1 / 7, 1.959964 * math.sqrt((4 / 7 * 3 / 7 + 1 / 7 * 6 / 7) / 7)
    assert share_difference(3, 5, 0, 5) == pytest.approx((0.6, middle - half, middle + half), abs=1e-6)
    assert share_difference(5, 5, 0, 5).high == 1.0
    assert share(0, 0).low is None
    assert share_difference(1, 1, 0, 0).low is None


def test_fisher_of_five_against_five():
    """Two of the 252 ways to choose five of ten are as extreme as all against none."""
    assert fisher(5, 5, 0, 5) == pytest.approx(2 / 252)
    assert fisher(0, 5, 0, 5) == 1.0
    assert fisher(0, 0, 1, 5) is None


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert holm([None]) == [None]


def test_median_interval():
    # P(Binomial(6, 1/2) = 0) = 1/64 < 0.025: the extremes of six values hold the median.
    assert median_interval([5, 1, 2, 3, 4, 6]) == (3.5, 1, 6)
    assert median_interval([1, 2, 3]) == (2.0, None, None)
    assert math.isnan(median_interval([]).estimate)


def test_interval_sign():
    assert [Interval(1, *bounds).sign for bounds in ((0.5, 2), (-1, 2), (-3, -1), (None, None))] == [1, 0, -1, 0]
    assert Interval(math.nan, -math.inf, 1.23456).plain(2) == {"estimate": None, "low": None, "high": 1.23}


TIMES, EVENTS = [12, 15, 15, 30, 40, 40, 40], [True, True, True, True, False, False, False]
TIMES_OTHER, EVENTS_OTHER = [22, 40, 40, 40, 40], [True, False, False, False, False]


class Timed:
    """As much of a record as survival asks for."""

    def __init__(self, time, collapsed):
        self.time, self.collapsed, self.em = time, collapsed, np.zeros(40)


ONE_SIDE = [Timed(t, e) for t, e in zip(TIMES, EVENTS, strict=True)]
OTHER_SIDE = [Timed(t, e) for t, e in zip(TIMES_OTHER, EVENTS_OTHER, strict=True)]


def test_kaplan_meier_is_that_of_lifelines():
    found = kaplan_meier(ONE_SIDE)
    assert found["update"] == [0, 12, 15, 30, 40]
    assert found["survival"] == pytest.approx([1, 6 / 7, 4 / 7, 3 / 7, 3 / 7], abs=1e-4)
    assert found["low"][1:] == pytest.approx([0.33405, 0.17187, 0.09775, 0.09775], abs=1e-4)
    assert found["high"][1:] == pytest.approx([0.97856, 0.83708, 0.73437, 0.73437], abs=1e-4)


def test_mean_survival_by_hand():
    found = mean_survival(ONE_SIDE)
    after = [3 * 6 / 7 + 15 * 4 / 7 + 10 * 3 / 7, 15 * 4 / 7 + 10 * 3 / 7, 10 * 3 / 7]
    assert found.estimate == pytest.approx(12 + after[0])  # 27.43, as lifelines has it
    variance = after[0] ** 2 / (7 * 6) + after[1] ** 2 * 2 / (6 * 4) + after[2] ** 2 / (4 * 3)
    assert found.high - found.estimate == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-5)
    assert mean_survival([Timed(40, False)] * 3) == (40.0, None, None)


def test_log_rank_is_that_of_lifelines():
    assert log_rank(ONE_SIDE, OTHER_SIDE) == pytest.approx(0.20470958999787625)
    assert log_rank([Timed(40, False)], [Timed(40, False)]) is None
    assert log_rank([], ONE_SIDE) is None


def test_summary_counts():
    found = summary([run(seed=0), run(seed=1, onset=20), run(seed=2, peak=0.05)])
    assert [found[name] for name in ("n", "collapsed", "never_learned", "ended_at_zero")] == [3, 1, 1, 1]
    # The mean of five falls below half with the third zero.
    assert found["survival"]["update"] == [0, 22, 40]


def _arrays(times, events, columns):
    return np.array(times, dtype=float), np.array(events), np.array(columns, dtype=float)


def test_firth_is_that_of_firthmodels():
    """firthmodels 0.8.2, profile intervals and likelihood ratio tests."""
    times, events, is_one = _arrays(TIMES + TIMES_OTHER, EVENTS + EVENTS_OTHER, [1] * 7 + [0] * 5)
    found = hazard_ratio(times, events, is_one > 0)
    assert found.log_ratio == pytest.approx((1.0151902, -0.68055706, 3.32065604), abs=2e-3)
    assert found.p_value == pytest.approx(0.25167, abs=1e-4)
    times, events, is_one = _arrays([12, 15, 16, 20, 22] + [40] * 5, [True] * 5 + [False] * 5, [1] * 5 + [0] * 5)
    found = hazard_ratio(times, events, is_one > 0)  # all against none: without a penalty it is infinite
    assert found.log_ratio == pytest.approx((3.24305161, 0.97444111, 8.14304021), abs=2e-3)
    assert found.p_value == pytest.approx(0.00253899, abs=1e-5)


def test_firth_of_two_covariates_is_that_of_firthmodels():
    times, events, columns = _arrays(
        [5, 7, 9, 12, 14, 20, 22, 30, 30, 30],
        [True, True, True, True, False, True, True, False, False, False],
        [[1, 0], [1, 1], [0, 1], [1, 1], [0, 0], [0, 1], [1, 0], [0, 0], [0, 1], [1, 1]],
    )
    model = Cox(times, events, columns)
    assert model.fit() == pytest.approx([0.82096137, 0.17990196], abs=1e-4)
    assert model.coefficient(1).log_ratio[1:] == pytest.approx([-1.34134527, 1.93741841], abs=2e-3)


def test_firth_in_closed_form():
    """One event among n1 and n0 runs: the penalised score is 0 where the share of the hazard is 3/4, so the ratio is
    3 n0 / n1."""
    times, events = np.array([1.0] + [2.0] * 6), np.array([True] + [False] * 6)
    found = hazard_ratio(times, events, np.array([True, True, False, False, False, False, False]))
    assert math.exp(found.log_ratio.estimate) == pytest.approx(3 * 5 / 2, rel=1e-3)


def test_without_penalty_it_is_that_of_statsmodels():
    from statsmodels.duration.hazard_regression import PHReg

    rng = np.random.default_rng(0)
    columns = rng.normal(size=(60, 2))
    times = np.ceil(rng.exponential(10 * np.exp(-columns @ [0.5, -0.3])))
    events = rng.random(60) < 0.7
    expected = PHReg(times, columns, status=events.astype(int), ties="breslow").fit(disp=False).params
    assert Cox(times, events, columns, penalised=False).fit() == pytest.approx(expected, abs=1e-4)


def test_a_known_hazard_is_found():
    """Runs of one side collapse at three times the rate: about 19 in 20 intervals of such studies hold that."""
    rng = np.random.default_rng(1)
    is_one = np.arange(60) < 30
    held = 0
    for _ in range(40):
        times = rng.exponential(np.where(is_one, 20, 60))
        events = times < 40
        found = hazard_ratio(np.minimum(times, 40), events, is_one).log_ratio
        held += found.low < math.log(3) < found.high
    assert 34 <= held <= 40


def test_what_cannot_be_asked():
    times = np.ones(4)
    assert hazard_ratio(times, np.zeros(4, dtype=bool), np.array([True, False] * 2)) is None
    assert hazard_ratio(times, np.ones(4, dtype=bool), np.ones(4, dtype=bool)) is None
    with pytest.raises(OptionError, match="an event"):
        Cox(times, np.zeros(4, dtype=bool), np.eye(4)[:, :1])
    with pytest.raises(OptionError, match="determine each other"):
        Cox(times, np.ones(4, dtype=bool), np.ones((4, 2)))
