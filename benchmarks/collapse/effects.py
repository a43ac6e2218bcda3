"""What a change does to a run: hazard, probability of a collapse and exact match, against runs equal otherwise.

Every comparison is of pairs: two runs of one seed, and so of one stream of questions, in two cells that differ in one
thing. Several such pairs of cells, "settings", may be pooled.

What decides: for exact match, Student's interval over seeds, each of which gives the mean of its differences; for the
probability of a collapse, Agresti and Caffo's interval of the counts for one setting and Student's over seeds for
several (the counts' where there are too few seeds for Student's). Hazard ratios
(Cox with Firth's penalty, settings as covariates), interquartile means and the probability of improvement (bootstrap)
stand beside and decide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.collapse import estimates
from benchmarks.collapse.contrasts import Contrast, Setting, algorithm_settings, contrasts
from benchmarks.collapse.cox import Cox
from benchmarks.collapse.estimates import (
    FEWEST_SEEDS,
    Interval,
    bootstrap,
    fisher,
    holm,
    improvement,
    iqm,
    share_difference,
    student,
)
from benchmarks.collapse.records import Record, StudyData
from benchmarks.collapse.survival import log_rank
from search_gym.errors import OptionError

Measure = Callable[[Record], float]


def held_out(record: Record) -> float:
    """Greedy exact match on held-out questions in the run's own environment, every kind counting the same."""
    return fmean(record.held_out[kind] for kind in record.kinds)


def held_out_common(record: Record) -> float:
    """The same in the environment that all runs share."""
    return fmean(record.held_out_common[kind] for kind in record.kinds)


def early(record: Record) -> float:
    """Mean exact match of sampled episodes in the first half of training: how fast it learns."""
    return float(record.em[: math.ceil(len(record.em) / 2)].mean())


def best(record: Record) -> float:
    """The best mean exact match of a few updates, whatever came later."""
    return record.outcome.best


def has_collapsed(record: Record) -> float:
    """1 for a collapse, 0 for none."""
    return float(record.collapsed)


def has_failed(record: Record) -> float:
    """1 for a run that collapsed or never learned, 0 for one that did neither."""
    return float(record.outcome.failed)


MEASURES: Mapping[str, Measure] = {
    "held_out": held_out,
    "held_out_common": held_out_common,
    "early": early,
    "best": best,
    "collapse": has_collapsed,
    "failure": has_failed,
}


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed in the cells of a setting."""

    setting: int
    one: Record
    other: Record


def pairs_of(data: StudyData, settings: Sequence[Setting]) -> list[Pair]:
    """The runs of each setting that have the same seed in both cells, where both are finished; the most of these that
    are `balanced`."""
    found = []
    for i, setting in enumerate(settings):
        others = {record.seed: record for record in data.of_cell(setting.other)}
        found += [Pair(i, one, others[one.seed]) for one in data.of_cell(setting.one) if one.seed in others]
    return balanced(found)


def balanced(pairs: Sequence[Pair]) -> list[Pair]:
    """The most pairs of which every seed has every setting, so that neither can be mistaken for the other.

    With `FEWEST_SEEDS` seeds if there are so many, because fewer give no interval.
    """
    seeds: dict[int, set[int]] = {}
    for pair in pairs:
        seeds.setdefault(pair.one.seed, set()).add(pair.setting)
    ordered = sorted(seeds, key=lambda seed: (-len(seeds[seed]), seed))
    choices: list[tuple[bool, int, int]] = []
    for number in range(1, len(ordered) + 1):
        shared = set.intersection(*(seeds[seed] for seed in ordered[:number]))
        choices.append((bool(shared) and number >= FEWEST_SEEDS, number * len(shared), number))
    if not choices:
        return []
    number = max(choices)[2]
    shared = set.intersection(*(seeds[seed] for seed in ordered[:number]))
    return [pair for pair in pairs if pair.one.seed in ordered[:number] and pair.setting in shared]


def by_seed(pairs: Sequence[Pair], measure: Measure) -> dict[int, float]:
    """The mean difference of each seed."""
    seeds: dict[int, list[Pair]] = {}
    for pair in pairs:
        seeds.setdefault(pair.one.seed, []).append(pair)
    return {
        seed: fmean(measure(pair.one) - measure(pair.other) for pair in some) for seed, some in sorted(seeds.items())
    }


def mean_difference(pairs: Sequence[Pair], measure: str) -> Interval:
    """How much more the first of each pair has of ``measure``, with the interval that decides.

    Raises:
        OptionError: no pair.
    """
    if not pairs:
        raise OptionError("expected a pair of runs or more, got none; do: wait for more runs")
    values = list(by_seed(pairs, MEASURES[measure]).values())
    if measure not in ("collapse", "failure"):
        return student(values)
    counts = [round(sum(map(MEASURES[measure], side))) for side in _sides(pairs)]
    pooled = share_difference(counts[0], len(pairs), counts[1], len(pairs))
    found = student(values)
    if len({pair.setting for pair in pairs}) == 1 or found.low is None or found.high is None:
        return pooled
    return Interval(found.estimate, max(-1.0, found.low), min(1.0, found.high))


def effect(data: StudyData, contrast: Contrast) -> dict[str, Any] | None:
    """What a change does; None without a pair of finished runs."""
    pairs = pairs_of(data, contrast.settings)
    if not pairs:
        return None
    ones, others = _sides(pairs)
    collapsed, collapsed_other = (sum(record.collapsed for record in side) for side in (ones, others))
    scores, scores_other = (_scores(side) for side in (ones, others))
    is_enough = scores.shape[1] == scores_other.shape[1]
    return {
        "family": contrast.family,
        "algorithm": contrast.algorithm,
        "factor": contrast.factor,
        "level": contrast.level,
        "reference": contrast.reference,
        "cells": [[contrast.settings[i].one, contrast.settings[i].other] for i in sorted({p.setting for p in pairs})],
        "n": len(pairs),
        "seeds": sorted({pair.one.seed for pair in pairs}),
        "collapsed": [collapsed, collapsed_other],
        "never_learned": [sum(r.outcome.kind == "never learned" for r in side) for side in (ones, others)],
        "probability": mean_difference(pairs, "collapse").plain(),
        "failed": [sum(record.outcome.failed for record in side) for side in (ones, others)],
        "failure": mean_difference(pairs, "failure").plain(),
        "p_value": _rounded(fisher(collapsed, len(pairs), collapsed_other, len(pairs))),
        "hazard_ratio": hazard_ratio(pairs).plain(),
        "log_rank": _rounded(log_rank(ones, others)) if len({pair.setting for pair in pairs}) == 1 else None,
        "held_out": mean_difference(pairs, "held_out").plain(),
        "held_out_common": mean_difference(pairs, "held_out_common").plain(),
        "best": mean_difference(pairs, "best").plain(),
        "early": mean_difference(pairs, "early").plain(),
        "iqm": bootstrap(lambda a, b: iqm(a) - iqm(b), scores, scores_other).plain() if is_enough else None,
        "improvement": bootstrap(improvement, scores, scores_other).plain() if is_enough else None,
    }


def effects(data: StudyData) -> list[dict[str, Any]]:
    """Every change that finished runs speak of. ``holm`` is the p-value adjusted within the family and algorithm."""
    rows = [row for contrast in contrasts(data.study) if (row := effect(data, contrast)) is not None]
    rows = [row for row in rows if row["algorithm"] != "both" or len(row["cells"]) > 1]
    return adjusted(rows, ("family", "algorithm"))


def adjusted(
    rows: Sequence[dict[str, Any]], by: Sequence[str], *, p_value: str = "p_value", name: str = "holm"
) -> list[dict[str, Any]]:
    """The rows with ``name``: their ``p_value`` adjusted for the number of rows that agree in ``by`` (``tests``)."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault(tuple(row[key] for key in by), []).append(i)
    found = [dict(row) for row in rows]
    for indices in families.values():
        for i, p in zip(indices, holm([rows[i][p_value] for i in indices]), strict=True):
            found[i][name] = _rounded(p)
            found[i]["tests"] = sum(rows[j][p_value] is not None for j in indices)
    return found


def algorithm_effects(data: StudyData) -> list[dict[str, Any]]:
    """GRPO against PPO: under equal budgets at each learning rate, pooled over these, pooled over everything that was
    varied by itself, and under the preset of the reference."""
    study = data.study
    rates = {cell["cell"] for group in study["groups"] if group["name"] == "rates" for cell in data.cells_of("rates")}
    matched = algorithm_settings(study, "grpo", "ppo", preset="matched")
    of_rates = tuple(setting for setting in matched if {setting.one, setting.other} <= rates)
    levels = {cell["cell"]: cell["levels"] for cell in study["cells"]}
    rows = [
        effect(data, Contrast("rates", "grpo", "algorithm", f"learning rate {rate:g}", "ppo", (setting,)))
        for setting in sorted(of_rates, key=lambda setting: levels[setting.one]["learning_rate"])
        if (rate := levels[setting.one]["learning_rate"]) is not None
    ]
    presets = algorithm_settings(study, "grpo", "ppo", preset="search_r1")
    for family, name, settings in (
        ("pooled", "all learning rates", of_rates),
        ("pooled", "everything varied by itself", matched),
        ("pooled", "preset search_r1", presets),
    ):
        if len(settings) > 1 or (settings and name == "preset search_r1"):
            rows.append(effect(data, Contrast(family, "grpo", "algorithm", name, "ppo", settings)))
    found: list[dict[str, Any]] = []
    for row in rows:
        if row is not None and all(row["cells"] != other["cells"] for other in found):
            found.append(row)
    return adjusted(found, ("family",))


def hazard_ratio(pairs: Sequence[Pair]) -> Interval:
    """The hazard of a collapse of the first of each pair over that of the second, settings being covariates; unknown
    where nothing collapsed."""
    records = [record for side in _sides(pairs) for record in side]
    events = np.array([record.collapsed for record in records])
    if not events.any():
        return Interval(math.nan, None, None)
    settings = sorted({pair.setting for pair in pairs})
    where = [pair.setting for pair in pairs] * 2
    columns = [np.repeat([1.0, 0.0], len(pairs)), *([float(w == s) for w in where] for s in settings[1:])]
    times = np.array([record.time for record in records], dtype=np.float64)
    found = Cox(times, events, np.array(columns).T).coefficient(0).log_ratio
    return Interval(*(None if value is None else math.exp(value) for value in found))  # type: ignore[arg-type]


def _sides(pairs: Sequence[Pair]) -> tuple[list[Record], list[Record]]:
    return [pair.one for pair in pairs], [pair.other for pair in pairs]


def _scores(records: Sequence[Record]) -> estimates.Scores:
    return np.array([[record.held_out[kind] for kind in record.kinds] for record in records])


def _rounded(p: float | None) -> float | None:
    return None if p is None else round(p, 4)
