"""The exercise's runs and its definitions by loops, and readings of them that are wrong in known ways."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metrics = dict[str, Floats]
Run = dict[str, Any]
EM, TIED = "rollout/em", "rollout/zero_variance_groups"
WINDOW, FRACTION, PATIENCE, FLOOR = 5, 0.5, 5, 0.1


@cache
def read_runs(file: str) -> tuple[Run, ...]:
    rows = json.loads(gzip.decompress(Path(__file__).with_name(file).read_bytes()))
    for row in rows:
        row["metrics"] = {
            name: np.array([np.nan if value is None else value for value in values], dtype=np.float64)
            for name, values in row["metrics"].items()
        }
    return tuple(rows)


def until(metrics: Metrics, length: int) -> Metrics:
    return {name: values[:length].copy() for name, values in metrics.items()}


def smooth(em: Floats, window: int = WINDOW) -> Floats:
    means = []
    for i in range(len(em)):
        part = em[max(0, i - window + 1) : i + 1]
        means.append(math.fsum(part) / len(part))
    return np.array(means)


def collapse(
    em: Floats,
    *,
    smooth: Callable[[Floats], Floats] = smooth,
    first_best: int = WINDOW - 1,
    floor: float = FLOOR,
    best_of: str = "past",
    patience: int = PATIENCE,
    slack: float = 0.0,
) -> int | None:
    """``slack`` is added to every limit: where it makes a difference, rounding may as well."""
    mean = smooth(em)
    low = 0
    for i in range(len(mean)):
        counted = mean[first_best : i + 1] if best_of == "past" else mean[first_best:]
        best = max(counted, default=0.0)
        low = low + 1 if best >= floor + slack and mean[i] < FRACTION * best + slack else 0
        if low == patience:
            return i - patience + 1
    return None


def _last_of_the_five(em: Floats) -> int | None:
    first = collapse(em)
    return None if first is None else first + PATIENCE - 1


def _from_one(em: Floats) -> int | None:
    first = collapse(em)
    return None if first is None else first + 1


WRONG_COLLAPSES: dict[str, Callable[..., int | None]] = {
    "exact match itself in the place of its mean. A round of 120 episodes varies by 0.09 without any change of the "
    "policy.": lambda em: collapse(em, smooth=lambda values: values),
    "the last of the 5 updates. The collapse begins at the first of them.": _last_of_the_five,
    "updates counted from 1. Return the index, from 0.": _from_one,
    "the best of the whole run. Compare with the best so far: what comes later cannot make an update low.": (
        lambda em: collapse(em, best_of="all")
    ),
    "means over fewer than 5 updates counted as a best. One lucky first update is not something learned.": (
        lambda em: collapse(em, first_best=0)
    ),
    "no floor. A best below 0.1 is not worth losing: the run has never learned.": lambda em: collapse(em, floor=0.0),
    "one low update is enough. It takes 5 in a row.": lambda em: collapse(em, patience=1),
}


def dead_since(metrics: Metrics) -> int | None:
    tied = metrics.get(TIED)
    if tied is None:
        return None
    start = len(tied)
    while start and tied[start - 1] == 1:
        start -= 1
    return start if len(tied) - start >= 5 else None
