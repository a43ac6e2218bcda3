"""Point estimates with 95 % intervals for a handful of runs.

The interquartile mean, the probability of improvement and the stratified bootstrap are those of Agarwal et al. 2021,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264, sections 4.1 and 4.3). Their
package rliable does not import beside pandas 3; `tests/test_collapse_estimates.py` holds figures that it gave
elsewhere. A percentile bootstrap over five runs is too narrow (`bootstrap_coverage` says by how much), so nothing is
decided by it: decisions rest on Student's t over seeds, and on Agresti and Caffo's interval for counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from search_gym.plugins import require

NUM_RESAMPLES = 2_000
LEVEL = 0.95
FEWEST_SEEDS = 3
"""Below it, neither Student's nor a bootstrap interval is given: two values show next to nothing of their spread."""
_AT_ONCE = 200

Scores = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """An estimate and its 95 % interval. A bound that is None is not known: the data say nothing there."""

    estimate: float
    low: float | None
    high: float | None

    @property
    def sign(self) -> int:
        """1 or -1 when the whole interval is above or below 0, else 0: undecided."""
        if self.low is not None and self.low > 0:
            return 1
        return -1 if self.high is not None and self.high < 0 else 0

    def plain(self, digits: int = 4) -> dict[str, float | None]:
        """As JSON has it; what is not finite is null."""
        return {name: _rounded(value, digits) for name, value in self._asdict().items()}


def iqm(scores: Scores) -> Any:
    """The interquartile mean of all ``scores`` (..., runs, tasks): without the lowest and the highest quarter."""
    flat = scores.reshape(*scores.shape[:-2], -1)
    return require("scipy.stats", extra="study").trim_mean(flat, 0.25, axis=-1)


def improvement(ones: Scores, others: Scores) -> Any:
    """The probability that a run of ``ones`` (..., runs, tasks) beats a run of ``others``, a tie counting one half,
    averaged over tasks: the Mann-Whitney statistic over the number of pairs."""
    difference = ones[..., :, None, :] - others[..., None, :, :]
    return (0.5 + 0.5 * np.sign(difference)).mean((-3, -2, -1))


def bootstrap(
    statistic: Callable[..., Any], *samples: Scores, resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """``statistic(*samples)`` with a percentile interval, every sample (runs, tasks) drawn anew by itself.

    ``statistic`` is given many draws at a time, (draws, runs, tasks), and returns a value for each. Whole runs are
    drawn, all tasks of one together, because a run that fails does so in every task. Fewer than `FEWEST_SEEDS` runs
    give no interval.
    """
    value = float(statistic(*samples))
    if min(map(len, samples)) < FEWEST_SEEDS:
        return Interval(value, None, None)
    rng = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < resamples:
        draws = min(_AT_ONCE, resamples - len(values))
        values += statistic(*(s[rng.integers(len(s), size=(draws, len(s)))] for s in samples)).tolist()
    low, high = np.quantile(values, _TAILS)
    return Interval(value, float(low), float(high))


def bootstrap_coverage(runs: int, *, repeats: int = 400, resamples: int = 400, seed: int = 0) -> float:
    """How often the 95 % bootstrap interval of a mean over ``runs`` normal values holds the true mean."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((repeats, runs))
    drawn = rng.integers(runs, size=(resamples, repeats, runs))
    means = np.take_along_axis(values[None], drawn, axis=2).mean(2)
    low, high = np.quantile(means, _TAILS, axis=0)
    return float(((low <= 0) & (high >= 0)).mean())


def student(values: Sequence[float]) -> Interval:
    """The mean and Student's interval; fewer than `FEWEST_SEEDS` values have one without bounds, and so have values
    that are all equal, because a spread of nothing over a few runs is no knowledge of the spread."""
    mean = float(np.mean(values))
    if len(values) < FEWEST_SEEDS:
        return Interval(mean, None, None)
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if spread == 0:
        return Interval(mean, None, None)
    half = float(require("scipy.stats", extra="study").t.ppf(_TAILS[1], len(values) - 1)) * spread
    return Interval(mean, mean - half, mean + half)


def share(count: int, total: int) -> Interval:
    """``count`` of ``total`` with the exact interval of Clopper and Pearson 1934."""
    if total == 0:
        return Interval(math.nan, None, None)
    low, high = _proportion().proportion_confint(count, total, alpha=1 - LEVEL, method="beta")
    return Interval(count / total, float(low), float(high))


def share_difference(count: int, total: int, count_other: int, total_other: int) -> Interval:
    """The first share minus the second with the interval of Agresti and Caffo 2000 ("Simple and effective confidence
    intervals for proportions and differences of proportions result from adding two successes and two failures"), which
    keeps its level with five runs a side; Newcombe's does not, and excludes 0 for 3 of 5 against 0 of 5."""
    if min(total, total_other) == 0:
        return Interval(math.nan, None, None)
    low, high = _proportion().confint_proportions_2indep(
        count, total, count_other, total_other, compare="diff", method="agresti-caffo", alpha=1 - LEVEL
    )
    return Interval(count / total - count_other / total_other, max(-1.0, float(low)), min(1.0, float(high)))


def fisher(count: int, total: int, count_other: int, total_other: int) -> float | None:
    """The two-sided p-value of Fisher's exact test that both shares are equal; None where there are no runs."""
    if min(total, total_other) == 0:
        return None
    table = [[count, total - count], [count_other, total_other - count_other]]
    return float(require("scipy.stats", extra="study").fisher_exact(table).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for their number after Holm 1979; None stays None and does not count."""
    known = [p for p in p_values if p is not None]
    if not known:
        return list(p_values)
    adjusted = iter(require("statsmodels.stats.multitest", extra="study").multipletests(known, method="holm")[1])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def median_interval(values: Sequence[float]) -> Interval:
    """The median and the interval between order statistics that holds it with 95 % at least (exact, from the binomial
    distribution); below six values there is none."""
    ordered, n = sorted(values), len(values)
    if n == 0:
        return Interval(math.nan, None, None)
    rank = int(require("scipy.stats", extra="study").binom.ppf(_TAILS[0], n, 0.5))
    middle = float(np.median(ordered))
    return Interval(middle, ordered[rank - 1], ordered[n - rank]) if rank >= 1 else Interval(middle, None, None)


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _proportion() -> Any:
    return require("statsmodels.stats.proportion", extra="study")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)
