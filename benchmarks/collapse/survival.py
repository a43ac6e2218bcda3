"""How long runs go without a collapse: Kaplan-Meier curves, restricted means and the log-rank test.

A run that has not collapsed by the end of its budget is censored there. Never having learned is not a collapse, so a
setting in which nothing is learned looks safe here; its share is always told beside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.collapse.estimates import LEVEL, Interval, share
from benchmarks.collapse.records import Record
from search_gym.plugins import require


def kaplan_meier(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """The survival curve as steps: from ``update`` on, ``survival``, and its interval ``low`` to ``high`` (log-log;
    there is none where nothing has happened yet).

    Raises:
        ValueError: no run.
    """
    found = _ecdf(records).sf
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)  # at 0 and 1
        interval = found.confidence_interval(confidence_level=LEVEL, method="log-log")
    steps: dict[str, list[float | None]] = {"update": [0.0], "survival": [1.0], "low": [None], "high": [None]}
    for i, update in enumerate(found.quantiles):
        steps["update"].append(float(update))
        steps["survival"].append(round(float(found.probabilities[i]), 4))
        for name, side in (("low", interval.low), ("high", interval.high)):
            bound = float(side.probabilities[i])
            steps[name].append(round(bound, 4) if math.isfinite(bound) and 0 < found.probabilities[i] < 1 else None)
    return steps


def mean_survival(records: Sequence[Record]) -> Interval:
    """The mean number of updates without a collapse, counted up to the shortest budget of the runs: the area under the
    survival curve, with the normal interval from Greenwood's variance (Klein and Moeschberger 2003, equation 4.5.2).

    No interval when nothing has collapsed, or when everything did at the same update.
    """
    budget = min(len(record.em) for record in records)
    found = _ecdf(records).sf
    times = np.minimum(np.concatenate([[0.0], found.quantiles, [budget]]), budget)
    heights = np.concatenate([[1.0], found.probabilities])
    areas = heights * np.diff(times)
    mean = float(areas.sum())
    variance, at_risk = 0.0, len(records)
    ends, collapsed = np.array([record.time for record in records]), np.array([r.collapsed for r in records])
    for i, time in enumerate(found.quantiles):
        at_risk = int(np.sum(ends >= time))
        deaths = int(np.sum((ends == time) & collapsed))
        after = float(areas[i + 1 :].sum())
        if deaths and at_risk > deaths and time < budget:
            variance += after**2 * deaths / (at_risk * (at_risk - deaths))
    if variance == 0:
        return Interval(mean, None, None)
    half = float(require("scipy.stats", extra="study").norm.ppf((1 + LEVEL) / 2)) * math.sqrt(variance)
    return Interval(mean, max(0.0, mean - half), min(float(budget), mean + half))


def log_rank(ones: Sequence[Record], others: Sequence[Record]) -> float | None:
    """The two-sided p-value of the log-rank test that both collapse at the same rate; None when none collapsed."""
    if not ones or not others or not any(record.collapsed for record in (*ones, *others)):
        return None
    p = float(require("scipy.stats", extra="study").logrank(_censored(ones), _censored(others)).pvalue)
    return p if math.isfinite(p) else None


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Counts, the probability of a collapse within the budget, and the survival curve of some runs."""
    kinds = [record.outcome.kind for record in records]
    collapsed = kinds.count("collapsed")
    return {
        "n": len(records),
        "collapsed": collapsed,
        "never_learned": kinds.count("never learned"),
        "ended_at_zero": sum(record.outcome.ended_at_zero for record in records),
        "recovered": sum(record.outcome.recovered is not None for record in records),
        "probability": share(collapsed, len(records)).plain(),
        "survival": kaplan_meier(records),
        "mean_survival": mean_survival(records).plain(2),
    }


def _ecdf(records: Sequence[Record]) -> Any:
    return require("scipy.stats", extra="study").ecdf(_censored(records))


def _censored(records: Sequence[Record]) -> Any:
    stats = require("scipy.stats", extra="study")
    times, censored = [record.time for record in records], [not record.collapsed for record in records]
    return stats.CensoredData.right_censored(times, censored)
