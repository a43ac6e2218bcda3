"""What a collapse is: examples worked by hand, and what must hold for every curve."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.collapse.definition import DEFAULT, Definition, collapse_update, outcome, smoothed
from search_gym.errors import OptionError

CURVES = st.lists(st.integers(0, 120).map(lambda n: n / 120), min_size=1, max_size=60)
SHORT = Definition(window=1, patience=3, floor=0.2)


def test_example_worked_by_hand():
    found = outcome([0.1, 0.4, 0.8, 0.3, 0.9, 0.44, 0.4, 0.1, 0.0, 0.2], SHORT)
    assert (found.kind, found.onset, found.peak, found.best, found.final) == ("collapsed", 6, 5, 0.9, 0.2)
    assert found.recovered is None


def test_smoothing_delays_the_onset():
    em = [0.8] * 10 + [0.0] * 10
    # Means of five after the fall: .64, .48, .32 (the first below .4), ...
    assert collapse_update(em) == 13
    assert collapse_update(em, SHORT) == 11


def test_two_low_updates_are_not_three():
    assert outcome([0.8, 0.1, 0.1, 0.8, 0.1, 0.1], SHORT).kind == "kept"


def test_collapse_needs_all_its_updates_within_the_run():
    assert collapse_update([0.8, 0.8, 0.1, 0.1], SHORT) is None
    assert collapse_update([0.8, 0.8, 0.1, 0.1, 0.1], SHORT) == 3


def test_never_learned_has_nothing_to_lose():
    assert outcome([0.1, 0.19, 0.0, 0.0, 0.0, 0.0], SHORT).kind == "never learned"
    assert outcome([0.1, 0.2, 0.0, 0.0, 0.0, 0.0], SHORT).kind == "collapsed"


def test_recovery():
    found = outcome([0.8, 0.1, 0.1, 0.1, 0.62, 0.62, 0.5, 0.62, 0.7, 0.62], SHORT)
    assert (found.onset, found.recovered) == (2, 8)
    assert outcome([0.8, 0.1, 0.1, 0.1, 0.62, 0.62], SHORT).recovered is None


def test_first_updates_do_not_make_the_best():
    """One lucky first round is no best mean of five."""
    em = [1.0, 0.0, 0.0, 0.0, 0.0] + [0.2] * 20
    assert outcome(em).best == pytest.approx(0.2)


@given(CURVES)
def test_a_curve_that_never_falls_never_collapses(em):
    assert outcome(sorted(em)).kind in ("kept", "never learned")


@given(CURVES, st.floats(0.1, 10))
def test_scale(em, scale):
    scaled = Definition(floor=DEFAULT.floor * scale)
    mean = smoothed(em)
    best = np.maximum.accumulate(mean)
    near = np.isclose(mean, DEFAULT.fraction * best) | np.isclose(best, DEFAULT.floor)
    if not near.any():
        assert collapse_update([value * scale for value in em], scaled) == collapse_update(em)


@given(CURVES, CURVES)
def test_what_follows_cannot_undo_a_collapse(em, more):
    onset = collapse_update(em)
    if onset is not None:
        assert collapse_update(em + more) == onset


@given(CURVES, st.integers(1, 8), st.floats(0.05, 0.5))
def test_stricter_definitions_find_fewer_and_later(em, patience, fraction):
    loose = collapse_update(em, Definition(patience=patience, fraction=fraction + 0.4))
    for strict in (  # each in one number
        Definition(patience=patience + 2, fraction=fraction + 0.4),
        Definition(patience=patience, fraction=fraction),
        Definition(patience=patience, fraction=fraction + 0.4, floor=0.5),
    ):
        onset = collapse_update(em, strict)
        assert onset is None or (loose is not None and loose <= onset)


@given(CURVES)
def test_parts_agree(em):
    found = outcome(em)
    assert (found.kind == "collapsed") == (found.onset is not None) == (collapse_update(em) is not None)
    assert found.onset is None or 1 <= found.peak < found.onset <= len(em)
    assert found.recovered is None or (found.onset is not None and found.recovered > found.onset)
    assert found.kind != "never learned" or found.best < DEFAULT.floor


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 8))
def test_smoothed_is_the_plain_mean(values, window):
    assert smoothed(values, window) == pytest.approx(
        [np.mean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]
    )


def test_errors():
    with pytest.raises(OptionError, match="one update or more"):
        outcome([])
    with pytest.raises(OptionError, match="finite"):
        outcome([0.1, float("nan")])
    with pytest.raises(OptionError, match="window"):
        Definition(window=0)


def test_words_hold_the_numbers():
    for number in ("last 5", "0.5 of", "5 updates", "0.1;", "0.75"):
        assert number in DEFAULT.words
