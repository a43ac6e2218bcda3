"""Which metrics warn of a collapse, how early, and how often for nothing.

One rule for all, with two forms. A metric is first averaged over `SMOOTH` updates.

* "level": an alarm when the mean is beyond a threshold that is the same for every run.
* "change": an alarm when the mean has left the run's own healthy window, the `WINDOW` updates up to the best exact
  match so far: its distance from the window's median, in robust standard deviations, is beyond a threshold.

Either has to hold for `SUSTAINED` updates in a row, looks at nothing that comes later, and counts only before the
collapse: the warning comes so many updates before its onset. Form, direction and threshold of each metric are chosen on
half of the seeds, as those with the highest detection rate minus false-alarm rate, and judged on the other half; then
the halves change places, so that each run is judged once, by a rule that has not seen it. Among equals the higher
threshold is taken. Detection is over runs that collapsed; false alarms are over runs that learned and never collapsed,
which are watched for longer, so the comparison is hard on the metrics.

A metric may merely tell settings apart (a high learning rate from a low one) and seem to warn. So there is also the
``concordance`` within cells: how often a run that collapsed came closer to the alarm than one of the same cell that did
not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.collapse.estimates import Interval, median_interval, share
from benchmarks.collapse.records import EM, Record

SMOOTH, WINDOW, SUSTAINED = 3, 8, 2
FEWEST = 3
"""Runs of each outcome without which nothing is chosen on a half."""
FEWEST_PAIRS = 10
"""Pairs without which a concordance is not told."""

Form = Literal["level", "change"]
Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Indicator:
    """A metric, and in which directions it may be alarming: 1 up, -1 down."""

    metric: str
    label: str
    directions: tuple[int, ...]


INDICATORS = (
    Indicator(EM, "exact match itself", (-1,)),
    Indicator("loss/entropy", "entropy", (-1, 1)),
    Indicator("rollout/logprob_correct", "log-likelihood of correct episodes", (-1, 1)),
    Indicator("rollout/logprob_incorrect", "log-likelihood of incorrect episodes", (-1, 1)),
    Indicator("loss/likelihood_gain_good", "likelihood that a step gives good actions", (-1, 1)),
    Indicator("loss/likelihood_gain_bad", "likelihood that a step gives bad actions", (-1, 1)),
    Indicator("loss/grad_norm", "gradient norm", (1, -1)),
    Indicator("loss/approx_kl", "KL of an update", (1,)),
    Indicator("loss/kl", "KL to the base model", (1,)),
    Indicator("loss/ratio_max", "largest ratio", (1,)),
    Indicator("loss/clip_fraction", "clip fraction", (1,)),
    Indicator("rollout/zero_variance_groups", "share of zero-variance groups", (1,)),
    Indicator("rollout/valid_turns", "valid turns", (-1,)),
    Indicator("rollout/valid_structure", "valid structure", (-1,)),
    Indicator("rollout/truncated", "truncated episodes", (1,)),
    Indicator("rollout/searches", "searches", (-1, 1)),
    Indicator("rollout/sampled_tokens", "length", (-1, 1)),
    Indicator("rollout/distinct_queries", "distinct queries", (-1,)),
    Indicator("rollout/repeated_queries", "repeated queries", (1,)),
    Indicator("rollout/query_retrieval", "dependence of queries on the question (share found)", (-1,)),
    Indicator("rollout/query_information", "dependence of queries on the question (nats)", (-1,)),
    Indicator("loss/explained_variance", "explained variance", (-1,)),
)


class Rule(NamedTuple):
    """What was chosen on one half of the seeds."""

    form: Form
    direction: int
    threshold: float


def alarm_series(record: Record, metric: str, form: Form, direction: int) -> Series:
    """How alarming the metric is at each update (n,), higher is worse; -inf while there is nothing to say."""
    if (metric, form) not in record.memo:
        mean = _trailing(record.metrics[metric], SMOOTH)
        record.memo[metric, form] = mean if form == "level" else _change(mean, record.peaks)
    raw = direction * record.memo[metric, form]
    raw = np.where(np.isfinite(raw), raw, -np.inf)
    sustained = raw.copy()
    for lag in range(1, SUSTAINED):
        sustained[lag:] = np.minimum(sustained[lag:], raw[:-lag])
        sustained[:lag] = -np.inf
    return sustained


def watched(record: Record) -> int:
    """For how many updates an alarm counts: up to the collapse, or all."""
    return record.time - 1 if record.collapsed else len(record.em)


def evaluate(records: Sequence[Record], indicator: Indicator) -> dict[str, Any] | None:
    """Detection, warning time and false alarms of one indicator over runs that learned; None where no run has it.

    ``rules`` are those chosen on each half, in the order of `halves`; with fewer than `FEWEST` runs of an outcome in a
    half they are None, and there are nothing but counts.
    """
    chosen = [
        record
        for record in records
        if record.outcome.kind != "never learned"
        and indicator.metric in record.metrics
        and np.isfinite(record.metrics[indicator.metric]).any()
    ]
    if not chosen:
        return None
    collapsed = [record for record in chosen if record.collapsed]
    found: dict[str, Any] = {
        "metric": indicator.metric,
        "label": indicator.label,
        "collapsed": len(collapsed),
        "kept": len(chosen) - len(collapsed),
    }
    first, second = halves(chosen)
    rules = [choose(half, indicator) for half in (first, second)]
    if None in rules:
        return found | {"rules": None}
    judged = [(record, rule) for half, rule in ((second, rules[0]), (first, rules[1])) for record in half if rule]
    leads: list[int] = []
    false_alarms = 0
    for record, rule in judged:
        update = first_alarm(record, indicator.metric, rule)
        if update is None:
            continue
        if record.collapsed:
            leads.append(record.time - update)
        else:
            false_alarms += 1
    return found | {
        "rules": [rule._asdict() for rule in rules if rule],
        "detection": share(len(leads), len(collapsed)).plain(),
        "false_alarms": share(false_alarms, len(chosen) - len(collapsed)).plain(),
        "lead": median_interval(leads).plain(2),
        "leads": sorted(leads),
        **concordance(judged, indicator.metric),
    }


def halves(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The runs of every other seed, and the rest."""
    seeds = sorted({record.seed for record in records})
    return [r for r in records if seeds.index(r.seed) % 2 == 0], [r for r in records if seeds.index(r.seed) % 2 == 1]


def choose(records: Sequence[Record], indicator: Indicator) -> Rule | None:
    """The form, direction and threshold with the highest detection rate minus false-alarm rate on ``records``; one that
    never gives an alarm where none does better than that; None with too few of them."""
    is_bad = np.array([record.collapsed for record in records], dtype=bool)
    if min(is_bad.sum(), (~is_bad).sum()) < FEWEST:
        return None
    best, rule = 0.0, Rule("change", indicator.directions[0], math.inf)
    # The level of exact match says how far learning is, not that something goes wrong.
    forms: tuple[Form, ...] = ("change",) if indicator.metric == EM else ("change", "level")
    for form in forms:
        for direction in indicator.directions:
            peaks = np.array([_peak(record, indicator.metric, form, direction) for record in records])
            for threshold in _thresholds(peaks):
                is_alarm = peaks >= threshold
                score = float(is_alarm[is_bad].mean() - is_alarm[~is_bad].mean())
                if score > best + 1e-9:
                    best, rule = score, Rule(form, direction, threshold)
    return rule


def first_alarm(record: Record, metric: str, rule: Rule) -> int | None:
    """The update of the first alarm that counts, from 1."""
    series = alarm_series(record, metric, rule.form, rule.direction)[: watched(record)]
    found = np.flatnonzero(series >= rule.threshold)
    return int(found[0]) + 1 if found.size else None


def concordance(judged: Sequence[tuple[Record, Rule]], metric: str) -> dict[str, Any]:
    """How often the run that collapsed came closer to the alarm, over pairs of one cell and of rules that differ in
    their threshold at most; 0.5 is chance."""
    wins, pairs = 0.0, 0
    peaks = {id(record): _peak(record, metric, rule.form, rule.direction) for record, rule in judged}
    for record, rule in judged:
        for other, other_rule in judged:
            if record.collapsed and not other.collapsed and record.cell == other.cell and rule[:2] == other_rule[:2]:
                mine, others = peaks[id(record)], peaks[id(other)]
                wins += float(mine > others) + 0.5 * float(mine == others)
                pairs += 1
    return {"concordance": round(wins / pairs, 4) if pairs >= FEWEST_PAIRS else None, "concordance_pairs": pairs}


def evaluate_all(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every indicator that some run has, over all runs and by algorithm (those with several), best first."""
    populations: dict[str, Sequence[Record]] = {"all": records}
    for algorithm in sorted({record.algorithm for record in records}):
        populations[algorithm] = [record for record in records if record.algorithm == algorithm]
    if len(populations) == 2:
        populations.pop("all")
    rows = [
        {"runs": name, **row}
        for name, chosen in populations.items()
        for indicator in INDICATORS
        if (row := evaluate(chosen, indicator)) is not None
    ]
    return sorted(rows, key=lambda row: (list(populations).index(row["runs"]), -merit(row)))


def merit(row: dict[str, Any]) -> float:
    """Detection rate minus false-alarm rate on runs that the rule had not seen; -1 where nothing was judged."""
    if row["rules"] is None:
        return -1.0
    return row["detection"]["estimate"] - row["false_alarms"]["estimate"]


def time_from_peak(records: Sequence[Record]) -> Interval:
    """How many updates lie between the best mean exact match and the onset of the collapse."""
    return median_interval([record.time - record.outcome.peak for record in records if record.collapsed])


def _change(mean: Series, peaks: npt.NDArray[np.int64]) -> Series:
    """The distance of each of the (n,) means from the median of the healthy window up to the peak (n,) so far, in
    robust standard deviations; NaN before there are `WINDOW` values."""
    values = np.full(len(mean), np.nan)
    for peak in np.unique(peaks):
        window = mean[max(0, peak + 1 - WINDOW) : peak + 1]
        if len(window) < WINDOW or not np.isfinite(window).all():
            continue
        middle = float(np.median(window))
        spread = 1.4826 * float(np.median(np.abs(window - middle)))
        is_its = peaks == peak
        values[is_its] = (mean[is_its] - middle) / max(spread, 0.05 * abs(middle), 1e-6)
    return values


def _trailing(values: Series, window: int) -> Series:
    """The mean of the finite ones among each value and those before it; NaN where there is none."""
    found = np.full(len(values), np.nan)
    for i in range(window - 1, len(values)):
        part = values[i + 1 - window : i + 1]
        part = part[np.isfinite(part)]
        if part.size:
            found[i] = part.mean()
    return found


def _peak(record: Record, metric: str, form: Form, direction: int) -> float:
    """How alarming the metric ever is while it is watched."""
    return float(max(alarm_series(record, metric, form, direction)[: watched(record)], default=-math.inf))


def _thresholds(peaks: Series) -> Iterator[float]:
    """Between each two neighbouring peaks, from above."""
    known = np.unique(peaks[np.isfinite(peaks)])[::-1]
    for i, value in enumerate(known):
        below = known[i + 1] if i + 1 < len(known) else value - 1.0
        yield float((value + below) / 2)
