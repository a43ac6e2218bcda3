"""Exercise 7: what killed this run? The page says what each function decides; numpy is all you need.

The metrics of a run are a dict: the name of a metric to an array (U,), one number for each of its U updates, NaN where
an update has none. A metric that the run's algorithm does not have is not in it. Updates are named by their index in
these arrays, from 0.
"""

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


def smooth(em: Floats) -> Floats:
    """The mean of each value (U,) and the up to ``WINDOW - 1`` before it; (U,)."""
    raise NotImplementedError


def collapse(em: Floats) -> int | None:
    """The first update of the collapse in the exact match ``em`` (U,) of a run, by the definition on the page."""
    raise NotImplementedError


def dead_since(metrics: Metrics) -> int | None:
    """The update from which on all groups were tied until the end, if that is so for 5 updates or more, else None."""
    raise NotImplementedError


def first_warning(metrics: Metrics) -> int | None:
    """The first update that warns of a collapse, None without one. It must not look at anything that comes later."""
    raise NotImplementedError


def cause(metrics: Metrics) -> str:
    """Which of ``CAUSES`` made the run what it is, from the whole of its metrics."""
    raise NotImplementedError


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
