"""Published directions beside the study's own: agrees, contradicts or undecided, by a rule.

The directions stand in ``published.toml``, with their sources. A direction "agrees" when the whole 95 % interval of the
study's difference has its sign, "contradicts" when the whole interval has the other one, and is "undecided" when the
interval holds 0 or does not exist. What no finished run speaks of is not told.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.collapse.contrasts import Setting, algorithm_settings, level_settings
from benchmarks.collapse.effects import MEASURES, mean_difference, pairs_of
from benchmarks.collapse.estimates import Interval, student
from benchmarks.collapse.records import Record, StudyData

PUBLISHED = Path(__file__).with_name("published.toml")
VERDICTS = ("agrees", "contradicts", "undecided")
_OF_SEVERAL = {"agrees": "agree", "contradicts": "contradict"}
EDGE = 3
"""Updates over which a metric is averaged at each end of a stretch."""

Claim = Mapping[str, Any]


def tally(verdicts: Sequence[Any]) -> str:
    """How many agree, contradict, and are undecided, in words."""
    counts = {verdict: verdicts.count(verdict) for verdict in VERDICTS}
    return ", ".join(f"{n} {verdict if n == 1 else _OF_SEVERAL.get(verdict, verdict)}" for verdict, n in counts.items())


def read_claims(path: Path = PUBLISHED) -> list[Claim]:
    """The published directions."""
    return tomllib.loads(path.read_text(encoding="utf-8"))["claims"]


def verdict(difference: Interval, sign: int = 1) -> str:
    """One of `VERDICTS`."""
    if difference.sign == 0:
        return "undecided"
    return "agrees" if difference.sign == sign else "contradicts"


def compare(data: StudyData, claims: Sequence[Claim] | None = None) -> list[dict[str, Any]]:
    """Each claim that finished runs speak of, with the study's difference and the verdict."""
    return [row for claim in (read_claims() if claims is None else claims) if (row := _judge(data, claim)) is not None]


def stretch_change(record: Record, metric: str, stretch: str) -> float | None:
    """The metric at the end of a stretch of the run minus at its beginning; None where the run has no such stretch, or
    no value there.

    "first third" and "last two thirds" meet after a third of the updates; "peak to collapse" leads from the best exact
    match to the onset of the collapse.
    """
    values = record.metrics.get(metric)
    if values is None:
        return None
    if stretch == "peak to collapse":
        if record.outcome.onset is None:
            return None
        start, stop = record.outcome.peak - 1, record.outcome.onset - 1
    else:
        third = len(values) // 3
        start, stop = (0, third) if stretch == "first third" else (third, len(values) - 1)
    first, last = (_around(values, at, is_start=at == 0) for at in (start, stop))
    return None if first is None or last is None else last - first


def _around(values: Any, at: int, *, is_start: bool) -> float | None:
    """The mean of the finite ones among the `EDGE` values up to ``at``; from it on at the start of a run."""
    part = values[:EDGE] if is_start else values[max(0, at + 1 - EDGE) : at + 1]
    part = part[np.isfinite(part)]
    return float(part.mean()) if part.size else None


def _judge(data: StudyData, claim: Claim) -> dict[str, Any] | None:
    found = _of_stretch(data, claim) if "stretch" in claim["compare"] else _of_pairs(data, claim)
    if found is None:
        return None
    difference, more = found
    return {
        "statement": claim["statement"],
        "source": claim["source"],
        "published": claim.get("published"),
        "measure": claim["measure"],
        "preset": claim["compare"].get("preset"),
        "sign": claim.get("sign", 1),
        "difference": difference.plain(),
        "verdict": verdict(difference, claim.get("sign", 1)),
        **more,
    }


def _of_pairs(data: StudyData, claim: Claim) -> tuple[Interval, dict[str, Any]] | None:
    settings = settings_of(data, claim["compare"])
    pairs = pairs_of(data, settings)
    if not pairs:
        return None
    used = sorted({pair.setting for pair in pairs})
    measure = MEASURES[claim["measure"]]
    return mean_difference(pairs, claim["measure"]), {
        "n": len(pairs),
        "seeds": sorted({pair.one.seed for pair in pairs}),
        "cells": [[settings[i].one, settings[i].other] for i in used],
        "means": [
            round(fmean(measure(run) for run in runs), 4)
            for runs in ([pair.one for pair in pairs], [pair.other for pair in pairs])
        ],
    }


def settings_of(data: StudyData, compared: Mapping[str, Any]) -> tuple[Setting, ...]:
    """The pairs of cells that a claim speaks of."""
    algorithms = compared["algorithms"]
    if "factor" in compared:
        level, reference = compared["levels"]
        return tuple(
            setting
            for algorithm in algorithms
            for setting in level_settings(data.study, algorithm, compared["factor"], level, reference)
        )
    fixed = {name: level for name, level in compared.items() if name != "algorithms"}
    return algorithm_settings(data.study, algorithms[0], algorithms[1], **fixed)


def _of_stretch(data: StudyData, claim: Claim) -> tuple[Interval, dict[str, Any]] | None:
    """Over runs that learned (that collapsed, where the stretch ends there), a seed giving the mean of its runs."""
    compared = claim["compare"]
    ends_in_collapse = compared["stretch"] == "peak to collapse"
    changes: dict[int, list[float]] = {}
    cells: dict[str, None] = {}
    for record in data.records:
        is_wanted = record.collapsed if ends_in_collapse else record.outcome.kind == "kept"
        if record.algorithm not in compared["algorithms"] or not is_wanted:
            continue
        change = stretch_change(record, claim["measure"], compared["stretch"])
        if change is not None:
            changes.setdefault(record.seed, []).append(change)
            cells.setdefault(record.cell)
    if not changes:
        return None
    by_seed = [fmean(some) for some in changes.values()]
    return student(by_seed), {
        "n": sum(map(len, changes.values())),
        "seeds": sorted(changes),
        "cells": [[cell] for cell in cells],
        "means": None,
    }
