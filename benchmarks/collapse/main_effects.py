"""Main effects of a fractional design: what each factor does while all the others vary too.

A linear model of the factors, the seeds being blocks, for exact match and for the share of runs that collapse; hazard
ratios beside it (Cox with Firth's penalty, the factors being covariates). A factor is 0 at its first level and 1 at its
second, so that its effect is the second minus the first. With resolution IV, no main effect is confused with an
interaction of two factors; which of these act together, a fraction cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.collapse.cox import Cox
from benchmarks.collapse.effects import adjusted, has_collapsed, held_out
from benchmarks.collapse.estimates import Interval
from benchmarks.collapse.records import Record, StudyData
from search_gym.plugins import require

Design = npt.NDArray[np.float64]


def fraction(data: StudyData) -> dict[str, Any] | None:
    """The main effects of the study's first group of the design "fraction"; None where it has none.

    ``effects`` is None as long as the finished runs do not tell the factors apart.
    """
    groups = [group for group in data.study["groups"] if group["design"] == "fraction"]
    if not groups:
        return None
    group = groups[0]
    cells = {cell["cell"] for cell in data.cells_of(group["name"])}
    records = [record for record in data.records if record.cell in cells]
    factors = {name: list(levels) for name, levels in group["factors"].items()}
    found: dict[str, Any] = {
        "group": group["name"],
        "cells": len({record.cell for record in records}),
        "cells_planned": len(cells),
        "n": len(records),
        "seeds": sorted({record.seed for record in records}),
        "collapsed": sum(record.collapsed for record in records),
        "never_learned": sum(record.outcome.kind == "never learned" for record in records),
        "effects": None,
    }
    if not records:
        return found
    matrix = coded(records, factors)
    model = np.column_stack([np.ones(len(records)), matrix, _blocks(records)])
    if np.linalg.matrix_rank(model) < model.shape[1] or len(records) <= model.shape[1]:
        return found
    rows = [
        {"factor": name, "level": levels[1], "reference": levels[0], **row}
        for (name, levels), row in zip(factors.items(), main_effects(records, matrix), strict=True)
    ]
    return found | {"effects": adjusted(adjusted(rows, ()), (), p_value="p_held_out", name="holm_held_out")}


def main_effects(records: Sequence[Record], matrix: Design) -> list[dict[str, Any]]:
    """For each column of ``matrix`` (runs, factors; 0 or 1): its effect on the share of collapses and on held-out exact
    match, its hazard ratio, and p-values."""
    collapse = np.array([has_collapsed(record) for record in records])
    shares, scores = (_linear(values, records, matrix) for values in (collapse, np.array([*map(held_out, records)])))
    times = np.array([record.time for record in records], dtype=np.float64)
    cox = Cox(times, collapse > 0, matrix) if collapse.any() else None
    rows = []
    for i in range(matrix.shape[1]):
        ratio = None if cox is None else cox.coefficient(i)
        logs = Interval(math.nan, None, None) if ratio is None else ratio.log_ratio
        rows.append(
            {
                "n": [int((matrix[:, i] == level).sum()) for level in (1, 0)],
                "collapsed": [int(collapse[matrix[:, i] == level].sum()) for level in (1, 0)],
                "probability": shares[i][0].plain(),
                "held_out": scores[i][0].plain(),
                "hazard_ratio": exponential(logs).plain(),
                "p_value": None if ratio is None else round(ratio.p_value, 4),
                "p_held_out": scores[i][1],
            }
        )
    return rows


def trends(data: StudyData) -> list[dict[str, Any]]:
    """The hazard ratio of a doubling of each number that a crossing varies over three levels or more, for each
    algorithm and for both together, the algorithm being a covariate then."""
    rows = []
    for group in data.study["groups"]:
        cells = {cell["cell"] for cell in data.cells_of(group["name"])} if group["design"] == "crossing" else set()
        own = [record for record in data.records if record.cell in cells]
        for factor, levels in group["factors"].items():
            if len(levels) < 3 or not all(isinstance(level, float) and level > 0 for level in levels):
                continue
            for algorithm in ("both", *sorted({record.algorithm for record in own})):
                records = [record for record in own if algorithm in ("both", record.algorithm)]
                row = _trend(records, factor)
                if row is not None:
                    rows.append({"group": group["name"], "factor": factor, "algorithm": algorithm, **row})
    return rows


def _trend(records: Sequence[Record], factor: str) -> dict[str, Any] | None:
    algorithms = sorted({record.algorithm for record in records})
    columns = [[math.log2(float(record.levels[factor])) for record in records]]
    columns += [[float(record.algorithm == name) for record in records] for name in algorithms[1:]]
    events = np.array([record.collapsed for record in records], dtype=bool)
    matrix = np.array(columns).T
    if not events.any() or np.linalg.matrix_rank(matrix - matrix.mean(0)) < matrix.shape[1]:
        return None
    found = Cox(np.array([float(record.time) for record in records]), events, matrix).coefficient(0)
    return {
        "n": len(records),
        "collapsed": int(events.sum()),
        "seeds": sorted({record.seed for record in records}),
        "hazard_ratio": exponential(found.log_ratio).plain(),
        "p_value": round(found.p_value, 4),
    }


def exponential(logs: Interval) -> Interval:
    """The interval of a ratio from that of its logarithm."""
    return Interval(math.exp(logs.estimate), *(None if x is None else math.exp(x) for x in logs[1:]))


def coded(records: Sequence[Record], factors: Mapping[str, Sequence[Any]]) -> Design:
    """0 for the first level of each factor and 1 for the second: (runs, factors)."""
    return np.array(
        [
            [
                float((record.algorithm if name == "algorithm" else record.levels[name]) == levels[1])
                for name, levels in factors.items()
            ]
            for record in records
        ]
    )


def _linear(
    values: npt.NDArray[np.float64], records: Sequence[Record], matrix: Design
) -> list[tuple[Interval, float | None]]:
    """The coefficient of each factor with its interval and p-value from ordinary least squares with seeds as blocks;
    nothing is known where all values are the same."""
    model = np.column_stack([matrix, _blocks(records), np.ones(len(records))])
    if np.ptp(values) == 0:
        return [(Interval(0.0, None, None), None)] * matrix.shape[1]
    fitted = require("statsmodels.regression.linear_model", extra="study").OLS(values, model).fit(cov_type="HC3")
    bounds = fitted.conf_int(alpha=0.05)
    return [
        (
            Interval(float(fitted.params[i]), float(bounds[i, 0]), float(bounds[i, 1])),
            round(float(fitted.pvalues[i]), 4),
        )
        for i in range(matrix.shape[1])
    ]


def _blocks(records: Sequence[Record]) -> Design:
    """A column for each seed but the first."""
    seeds = sorted({record.seed for record in records})
    return np.array([[float(record.seed == seed) for seed in seeds[1:]] for record in records]).reshape(
        len(records), len(seeds) - 1
    )
