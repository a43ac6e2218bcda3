"""Means over questions with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

METRICS = ("em", "f1", "subem", "searches", "valid_turns", "truncated", "sampled_tokens")
"""What is measured of an episode."""

NUM_RESAMPLES = 2_000


class Estimate(NamedTuple):
    """A mean over questions and its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate(
    scores: Sequence[Mapping[str, Any]], kinds: Sequence[str], seed: int, *, metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, Estimate]]:
    """Means and intervals of ``metrics`` over all questions ("all"), and over those of each kind.

    Raises:
        ValueError: no scores, or not one kind for each.
    """
    if not scores or len(kinds) != len(scores):
        raise ValueError(f"expected scores and one kind for each, got {len(scores)} scores and {len(kinds)} kinds")
    values, names = np.array([[row[metric] for metric in metrics] for row in scores], dtype=np.float64), np.array(kinds)
    groups = {"all": values} | {kind: values[names == kind] for kind in sorted({*kinds} - {"all"})}
    return {kind: dict(zip(metrics, _estimates(rows, seed), strict=True)) for kind, rows in groups.items()}


def to_plain(estimates: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict[str, float]]]:
    """``estimates`` as a summary holds them: by kind, by metric, then mean, low and high."""
    return {kind: {name: e._asdict() for name, e in by_metric.items()} for kind, by_metric in estimates.items()}


def _estimates(values: npt.NDArray[np.float64], seed: int) -> list[Estimate]:
    low, high = bootstrap_interval(values, seed)
    return [Estimate(*map(float, row)) for row in zip(values.mean(axis=0), low, high, strict=True)]


def bootstrap_interval(
    values: npt.NDArray[np.float64], seed: int, *, num_resamples: int = NUM_RESAMPLES
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The 95 % percentile bootstrap interval (low (M,), high (M,)) of the column means of ``values`` (N, M).

    Rows are drawn with replacement, whole, ``num_resamples`` times (Efron 1979). Where all rows are equal the interval
    has no width, which says nothing about other questions.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((num_resamples, values.shape[1]))
    step = max(1, 200_000 // count)
    for start in range(0, num_resamples, step):
        block = means[start : start + step]
        block[:] = values[rng.integers(count, size=(len(block), count))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high
