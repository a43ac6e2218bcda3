"""The visible tests of exercise 7. Run them with `pytest`; `search-gym exercise check diagnose` has other runs."""

from pathlib import Path

import numpy as np
import pytest
from starter import CAUSES, cause, collapse, dead_since, first_warning, read_runs, smooth

RUNS = read_runs(Path(__file__).with_name("runs.json.gz"))
COLLAPSES = {
    "grpo-kl-k3-loss, seed 1": 35,
    "ppo-learning-rate-0.006, seed 1": 13,
    "grpo-group-size-8, seed 1": 19,
    "grpo-learning-rate-0.002, seed 1": None,
    "grpo-group-size-3, seed 1": None,  # never learned, so there was nothing to lose
}


def test_smooth() -> None:
    found = smooth(np.array([1.0, 0.0, 0.5, 0.5, 0.0, 0.0]))
    np.testing.assert_allclose(found, [1.0, 0.5, 0.5, 0.5, 0.4, 0.2])


@pytest.mark.parametrize("name", COLLAPSES)
def test_collapses_of_real_runs(name: str) -> None:
    (run,) = [run for run in RUNS if run["name"] == name]
    assert collapse(run["metrics"]["rollout/em"]) == COLLAPSES[name]


def test_dead_runs() -> None:
    by_name = {run["name"]: dead_since(run["metrics"]) for run in RUNS}
    assert by_name["grpo-kl-k3-loss, seed 1"] == 35
    assert by_name["grpo-learning-rate-0.002, seed 1"] is None
    assert by_name["ppo-group-size-1, seed 1"] is None  # no groups, so no such metric


def test_a_warning_does_not_look_ahead() -> None:
    for run in RUNS[:10]:
        whole = first_warning(run["metrics"])
        for length in (1, 10, 20, 30):
            so_far = {name: values[:length] for name, values in run["metrics"].items()}
            assert first_warning(so_far) == (whole if whole is not None and whole < length else None)


def test_warnings_are_better_than_guesses() -> None:
    hits, false_alarms = [], []
    for run in RUNS:
        em = run["metrics"]["rollout/em"]
        onset, warning = collapse(em), first_warning(run["metrics"])
        if onset is not None:
            hits.append(warning is not None and warning < onset)
        elif smooth(em)[4:].max() >= 0.1:
            false_alarms.append(warning is not None)
    print(
        f"warned of {np.mean(hits):.0%} of {len(hits)} collapses, for nothing in {np.mean(false_alarms):.0%} of others"
    )
    assert np.mean(hits) - np.mean(false_alarms) >= 0.55


def test_causes() -> None:
    known = [run for run in RUNS if run["cause"] is not None]
    assert {run["cause"] for run in known} == set(CAUSES)
    found = {run["name"]: cause(run["metrics"]) for run in known}
    assert found == {run["name"]: run["cause"] for run in known}
