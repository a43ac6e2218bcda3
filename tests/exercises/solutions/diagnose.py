"""A solution of exercise 7, written from its page and from looking at the runs that come with it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metrics = dict[str, Floats]

WINDOW = 5
KL_LIMIT = 0.07
"""Between the trailing means of runs that collapsed and of others."""


def smooth(em: Floats) -> Floats:
    sums = np.cumsum(np.concatenate([np.zeros(1), em]))
    stop = np.arange(1, len(em) + 1)
    start = np.maximum(0, stop - WINDOW)
    return (sums[stop] - sums[start]) / (stop - start)


def collapse(em: Floats) -> int | None:
    mean = smooth(em)
    best, low = 0.0, 0
    for i, value in enumerate(mean.tolist()):
        if i >= WINDOW - 1:
            best = max(best, value)
        low = low + 1 if best >= 0.1 and value < 0.5 * best else 0
        if low == 5:
            return i - 4
    return None


def dead_since(metrics: Metrics) -> int | None:
    tied = metrics.get("rollout/zero_variance_groups")
    if tied is None:
        return None
    alive = np.flatnonzero(tied != 1)
    start = int(alive[-1]) + 1 if alive.size else 0
    return start if len(tied) - start >= 5 else None


def first_warning(metrics: Metrics) -> int | None:
    """The mean KL of three updates is above the limit twice in a row."""
    kl = metrics["loss/approx_kl"]
    above = 0
    for i in range(2, len(kl)):
        recent = kl[i - 2 : i + 1]
        recent = recent[np.isfinite(recent)]
        above = above + 1 if recent.size and recent.mean() > KL_LIMIT else 0
        if above == 2:
            return i
    return None


def cause(metrics: Metrics) -> str:
    entropy = metrics["loss/entropy"]
    if entropy[0] < 1.1:
        return "unmasked documents"
    if np.nanmax(entropy) > 2:
        return "entropy bonus"
    return "steps too large" if np.nanmax(metrics["loss/approx_kl"]) > 0.08 else "healthy"
