"""Every kind of trouble is noticed when it begins, once, and a run without trouble is left in peace."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import algorithms
from agents.health import COLLAPSES, Alarm, HealthConfig, HealthMonitor
from search_gym.errors import OptionError

CONFIG = HealthConfig(patience=4)
HEALTHY = {
    "loss/policy": 0.01,
    "loss/entropy": 1.0,
    "loss/grad_norm": 0.5,
    "loss/logprob_mismatch": 1e-5,
    "rollout/em": 0.4,
    "rollout/valid_turns": 0.9,
}


def watch(
    rows: Iterable[Mapping[str, float]], config: HealthConfig = CONFIG, monitor: HealthMonitor | None = None
) -> list[Alarm]:
    """The alarms of a run whose metrics are ``HEALTHY`` but for what ``rows`` say; updates count from 1."""
    monitor = monitor or HealthMonitor(config)
    return [
        alarm for update, row in enumerate(rows, 1) for alarm in monitor.check({**HEALTHY, **row, "update": update})
    ]


def series(key: str, *values: float) -> list[dict[str, float]]:
    return [{key: value} for value in values]


def onsets(alarms: Iterable[Alarm]) -> list[tuple[str, int]]:
    return [(alarm.name, alarm.update) for alarm in alarms]


class TestEachTrouble:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("key", ["loss/policy", "loss/grad_norm", "loss/anything"])
    def test_a_loss_that_is_not_finite(self, key: str, value: float) -> None:
        (alarm,) = watch(series(key, 0.1, 0.1, value))
        assert (alarm.name, alarm.update, alarm.is_collapse) == ("non-finite", 3, True)
        assert f"{key} is {value}" in alarm.message

    def test_metrics_of_other_kinds_may_be_missing_or_not_finite(self) -> None:
        assert not watch(series("rollout/em/2-hop", math.nan, math.nan))
        assert not watch(series("rollout/em", math.nan, math.nan))
        assert HealthMonitor(CONFIG).check({"update": 1}) == []

    def test_skipped_steps(self) -> None:
        (alarm,) = watch(series("loss/skipped_steps", 0, 0, 2))
        assert (alarm.name, alarm.update) == ("non-finite", 3)
        assert alarm.message.startswith("2 optimiser steps were skipped")

    @given(st.lists(st.floats(0.2, 0.9), min_size=3, max_size=8), st.floats(1.01, 3.0))
    def test_a_gradient_explodes_beyond_a_multiple_of_the_median(self, norms: list[float], excess: float) -> None:
        median = float(np.median(norms[-CONFIG.patience :]))
        limit = max(CONFIG.grad_norm_factor * median, CONFIG.min_grad_norm)
        assert not watch(series("loss/grad_norm", *norms, limit / excess))
        (alarm,) = watch(series("loss/grad_norm", *norms, limit * excess))
        assert (alarm.name, alarm.update, alarm.is_collapse) == ("gradient explosion", len(norms) + 1, False)
        assert f"{median:.3g} is usual" in alarm.message

    def test_gradients_of_zero_do_not_make_every_other_one_an_explosion(self) -> None:
        """Groups without variance have no gradient at all."""
        assert not watch(series("loss/grad_norm", 0.0, 0.0, 0.0, 0.0, 0.9, 0.0))

    @pytest.mark.parametrize(
        ("entropies", "em", "expected"),
        [
            ((1.0, 0.5, 0.06, 0.04), 0.4, [("entropy collapse", 4)]),
            ((1.0, 0.5, 0.04), 0.95, []),  # sure because it is right
            ((0.3, 0.04), 0.4, []),  # low, but above a tenth of the start
            ((0.3, 0.02), 0.4, [("entropy collapse", 2)]),
            ((0.04, 0.04), 0.4, []),  # low from the start
            ((2.0, 0.1), 0.4, []),  # fallen far, but not low
        ],
    )
    def test_entropy_collapses_when_it_is_low_and_has_fallen(
        self, entropies: tuple[float, ...], em: float, expected: list[tuple[str, int]]
    ) -> None:
        alarms = watch([{"loss/entropy": entropy, "rollout/em": em} for entropy in entropies])
        assert onsets(alarms) == expected
        assert all(alarm.is_collapse for alarm in alarms)

    @pytest.mark.parametrize(
        ("key", "name"), [("rollout/em", "reward collapse"), ("rollout/valid_turns", "vanishing valid turns")]
    )
    def test_a_lasting_fall_below_half_of_the_best(self, key: str, name: str) -> None:
        """The best mean is 0.6, of the first updates; 0.29 is below its half, in updates 5 to 8."""
        (alarm,) = watch(series(key, 0.6, 0.6, 0.6, 0.6, 0.29, 0.1, 0.2, 0.0, 0.0))
        assert (alarm.name, alarm.update, alarm.is_collapse) == (name, 8, True)
        assert "0.29 or less for 4 updates, after a mean of 0.6" in alarm.message
        assert not watch(series(key, 0.6, 0.6, 0.6, 0.6, 0.29, 0.1, 0.2, 0.31, 0.29, 0.29, 0.29))

    def test_a_fall_in_the_first_updates_counts_too(self) -> None:
        assert onsets(watch(series("rollout/valid_turns", 0.9, 0.9, 0.9, 0, 0, 0, 0))) == [("vanishing valid turns", 7)]

    def test_what_never_rose_cannot_fall(self) -> None:
        """A lucky round of a policy that knows nothing is no success to be lost."""
        assert not watch(series("rollout/em", 0.2, 0.0, 0.05, *[0.0] * 20))
        assert not watch(series("rollout/valid_turns", *[0.1] * 4, *[0.0] * 20))

    @pytest.mark.parametrize(
        ("precision", "fine", "bad"),
        [("float32", 9e-4, 2e-3), ("float16", 0.019, 0.03), ("bfloat16", 0.09, 0.2)],
    )
    def test_a_mismatch_is_judged_by_the_precision(self, precision: Any, fine: float, bad: float) -> None:
        rows = series("loss/logprob_mismatch", fine, bad)
        (alarm,) = watch(rows, monitor=HealthMonitor(CONFIG, precision=precision))
        assert (alarm.name, alarm.update, alarm.is_collapse) == ("log-probability mismatch", 2, False)
        given = replace(CONFIG, max_logprob_mismatch=0.5)
        assert not watch(rows, monitor=HealthMonitor(given, precision=precision))


class TestOnset:
    def test_an_alarm_goes_off_once_and_again_only_after_it_has_cleared(self) -> None:
        bad, good = math.nan, 0.1
        alarms = watch(series("loss/policy", good, bad, bad, bad, good, good, bad, good, bad))
        assert onsets(alarms) == [("non-finite", 2), ("non-finite", 7), ("non-finite", 9)]

    def test_one_trouble_does_not_hide_another(self) -> None:
        rows = [{}, {"loss/policy": math.nan}, {"loss/policy": math.nan, "loss/entropy": 0.001}, {}]
        assert onsets(watch(rows)) == [("non-finite", 2), ("entropy collapse", 3)]

    @given(
        st.lists(
            st.fixed_dictionaries(
                {
                    "rollout/em": st.floats(0, 1),
                    "rollout/valid_turns": st.floats(0, 1),
                    "loss/entropy": st.sampled_from((math.nan, 0.001, 0.04, 1.0)),
                    "loss/grad_norm": st.sampled_from((math.inf, 0.1, 0.5, 50.0)),
                    "loss/logprob_mismatch": st.sampled_from((0.0, 1.0)),
                }
            ),
            max_size=30,
        ),
        st.integers(0, 30),
    )
    def test_an_interrupted_run_raises_the_alarms_of_one_that_was_not(
        self, rows: list[dict[str, float]], interrupted: int
    ) -> None:
        monitor = HealthMonitor(CONFIG)
        alarms = []
        for update, row in enumerate(rows, 1):
            if update == interrupted:
                state = json.loads(json.dumps(monitor.state(), allow_nan=False))
                monitor = HealthMonitor(CONFIG)
                monitor.load_state(state)
            alarms += monitor.check({**row, "update": update})
        again = HealthMonitor(CONFIG)
        assert alarms == [
            alarm for update, row in enumerate(rows, 1) for alarm in again.check({**row, "update": update})
        ]
        for name in {alarm.name for alarm in alarms}:
            assert name in COLLAPSES or name in ("gradient explosion", "log-probability mismatch")


def curve(updates: int, episodes: int, seed: int) -> list[dict[str, float]]:
    """Metrics in the shape of a run that learns: exact match and valid turns rise to 1 with the noise of so many
    episodes, entropy falls from 1.4 to 0.1 nats, and the gradient norm scatters around 0.5."""
    rng = np.random.default_rng(seed)
    progress = np.linspace(0, 1, updates)
    em = 0.02 + 0.97 / (1 + np.exp(-12 * (progress - 0.4)))
    valid = 0.83 + 0.16 * progress
    return [
        {
            "rollout/em": rng.binomial(episodes, em[i]) / episodes,
            "rollout/valid_turns": rng.binomial(3 * episodes, valid[i]) / (3 * episodes),
            "loss/entropy": 0.1 + 1.3 * (1 - progress[i]) ** 2,
            "loss/grad_norm": 0.5 * float(rng.lognormal(0, 0.5)),
        }
        for i in range(updates)
    ]


@pytest.mark.parametrize("episodes", [16, 128])
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_is_left_in_peace(episodes: int, seed: int) -> None:
    assert not watch(curve(110, episodes, seed), HealthConfig())


def test_every_metric_of_a_run_is_documented_and_every_documented_one_exists(tmp_path: Path) -> None:
    """PPO and GRPO together log all there is, but for what needs an episode that was right, or a study."""
    not_here = {"rollout/logprob_correct", "rollout/valid_structure"}
    logged: set[str] = set()
    for name in ("ppo", "grpo"):
        options = ["--updates", "2", "--rollouts-per-update", "16", "--minibatch-size", "8"]
        algorithms.load(name).main([*options, "--run-dir", str(tmp_path / name)])
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 2
        assert not any("alarms" in row for row in rows)
        logged |= {re.sub("^(rollout/em)/.*", r"\1/<kind>", key) for row in rows for key in row}
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(.*?)` \|", text, flags=re.MULTILINE)
    assert sorted(documented) == sorted(logged | not_here)


def test_every_alarm_is_documented_with_whether_it_is_a_collapse() -> None:
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z -]+?) \| .* \| (yes|no) \|$", text, flags=re.MULTILINE)
    assert {name for name, is_collapse in rows if is_collapse == "yes"} == COLLAPSES
    assert {name for name, is_collapse in rows if is_collapse == "no"} == {
        "gradient explosion",
        "log-probability mismatch",
    }


@pytest.mark.parametrize("options", [{"patience": 2}, {"fall": 0.0}, {"fall": 1.0}, {"entropy_fall": -1.0}])
def test_options_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="do: change"):
        HealthConfig(**options)
