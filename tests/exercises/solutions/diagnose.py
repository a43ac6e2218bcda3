"""A solution of exercise 7, written from its page and from looking at the runs that come with it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metrics = dict[str, Floats]

WINDOW = 5
CAUSES = ("healthy", "steps too large", "unmasked documents", "entropy bonus")
KL_LIMIT = 0.075
"""Between what two updates in a row have in runs that collapsed and in others."""


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
    """KL is above the limit in two updates in a row."""
    above = metrics["loss/approx_kl"] > KL_LIMIT
    found = np.flatnonzero(above[1:] & above[:-1])
    return int(found[0]) + 1 if found.size else None


def cause(metrics: Metrics) -> str:
    entropy = metrics["loss/entropy"]
    if entropy[0] < 1.1:
        return "unmasked documents"
    if np.nanmax(entropy) > 2:
        return "entropy bonus"
    return "steps too large" if np.nanmax(metrics["loss/approx_kl"]) > 0.08 else "healthy"


# What follows is complete: it reads runs.


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The runs of ``runs.json.gz``: dicts with ``name``, ``algorithm``, ``cause`` (None where it is open) and
    ``metrics``."""
    runs = json.loads(gzip.decompress(path.read_bytes()))
    for run in runs:
        run["metrics"] = {name: _array(values) for name, values in run["metrics"].items()}
    return runs


def read_metrics(path: Path) -> Metrics:
    """The metrics of a training run, from its ``metrics.jsonl``."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {name for row in rows for name in row if "/" in name}
    return {name: _array([row.get(name) for row in rows]) for name in sorted(names)}


def _array(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


if __name__ == "__main__":
    found = read_metrics(Path(sys.argv[1]))
    print("collapse     ", collapse(found["rollout/em"]))
    print("dead since   ", dead_since(found))
    print("first warning", first_warning(found))
    print("cause        ", cause(found))
