"""The short answer at the head of docs/findings.md: sentences that follow from ``analysis.json`` by rules.

A difference is told as one only when its whole interval lies on one side of 0. What no finished run speaks of is left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.collapse.comparison import tally
from benchmarks.collapse.findings_text import Row, interval, listed, number, plural, ratio, sign

JUDGED = 0.25
"""Detection rate minus false-alarm rate from which an indicator is called a warning."""


def answer(found: Row) -> list[str]:
    """A few sentences for each part of the question: does GRPO collapse, does PPO not, why, what warns, what helps."""
    parts = [_does_it(found), _difference(found), _score(found), _published_setting(found)]
    parts += [_moves(found), _warns(found), _helps(found), _paper(found)]
    return [part for part in parts if part]


def pooled(found: Row, name: str) -> Row | None:
    """GRPO against PPO over the settings of this name."""
    return next((row for row in found["algorithms"] if row["level"] == name), None)


def rate_cells(found: Row, algorithm: str) -> list[Row]:
    """The cells of the group "rates", from the lowest learning rate to the highest."""
    cells = [cell for cell in found["cells"] if "rates" in cell["groups"] and cell["algorithm"] == algorithm]
    return sorted(cells, key=lambda cell: cell["levels"]["learning_rate"])


def label(row: Row, factors: Row) -> str:
    """A change in words."""
    if row["factor"] == "filtering":
        return f"{row['level']} in the place of GRPO"
    name = factors.get(row["factor"], {}).get("label", row["factor"])
    return f"{name} {row['level']} in the place of {row['reference']}"


def is_remedy(row: Row) -> bool:
    """Whether a change is one that is proposed against collapses: a lower rate, a KL term, groups of one, a higher
    upper clip, LLDS, an entropy bonus, training on groups alone whose episodes differ."""
    factor = row["factor"]
    if factor == "learning_rate":
        return float(row["level"]) < float(row["reference"])
    if factor == "group_size":
        return row["level"] == "1"
    return factor in ("llds", "entropy", "clip_high", "filtering") or (factor == "kl" and row["reference"] == "none")


def remedies(found: Row) -> list[Row]:
    """The effects of what is proposed against collapses."""
    return [row for row in found["effects"] if is_remedy(row)]


def suspects(found: Row) -> list[Row]:
    """The effects of other changes of training."""
    return [row for row in found["effects"] if not is_remedy(row) and row["family"] != "environment"]


def environment(found: Row) -> list[Row]:
    """The effects of changes of the retriever, the reward and the base model."""
    return [row for row in found["effects"] if not is_remedy(row) and row["family"] == "environment"]


def decided(rows: Sequence[Row], measure: str, side: int) -> list[Row]:
    """Those whose whole interval of ``measure`` is on one side, both algorithms together before each by itself."""
    some = [row for row in rows if sign(row[measure]) == side]
    both = {(row["factor"], row["level"]) for row in some if row["algorithm"] == "both"}
    return [row for row in some if row["algorithm"] == "both" or (row["factor"], row["level"]) not in both]


def _does_it(found: Row) -> str | None:
    sentences = []
    for algorithm, yes, no in (
        ("grpo", "**GRPO collapses.**", "**No GRPO run has collapsed.**"),
        ("ppo", "**PPO collapses too.**", "**No PPO run has collapsed.**"),
    ):
        cells = rate_cells(found, algorithm)
        if not cells:
            continue
        counts = [
            f"{cell['collapsed']} of {cell['n']} at {cell['levels']['learning_rate']:g}"
            + (f" ({cell['never_learned']} never learned)" if cell["never_learned"] else "")
            for cell in cells
        ]
        collapsed = sum(cell["collapsed"] for cell in cells)
        zero = sum(cell["ended_at_zero"] for cell in cells)
        first = next((cell["levels"]["learning_rate"] for cell in cells if cell["collapsed"]), None)
        sentences.append(
            f"{yes if collapsed else no} "
            + (f"The lowest learning rate at which a run did is {first:g}: " if first is not None else "Collapsed are ")
            + f"{', '.join(counts)}; {plural(zero, 'run')} ended without a single right answer."
        )
    return " ".join(sentences) or None


def _difference(found: Row) -> str | None:
    row = pooled(found, "all learning rates")
    if row is None:
        return None
    side = sign(row["probability"])
    verdict = {
        1: "**Under equal budgets GRPO collapses more often than PPO.**",
        -1: "**Under equal budgets PPO collapses more often than GRPO.**",
        0: "**Whether one collapses more often than the other under equal budgets is undecided.**",
    }[side]
    failed = {
        1: "GRPO fails more often",
        -1: "PPO fails more often",
        0: "undecided too" if side == 0 else "undecided",
    }[sign(row["failure"])]
    return (
        f"{verdict} Over the learning rates, GRPO's share of collapsed runs minus PPO's is "
        f"{interval(row['probability'], signed=True)} ({plural(row['n'], 'pair')} of runs, "
        f"{plural(len(row['seeds']), 'seed')}). Runs that collapsed or never learned, together: "
        f"{interval(row['failure'], signed=True)}, {failed}."
    )


def _score(found: Row) -> str | None:
    best = {
        algorithm: max(cells, key=lambda cell: cell["held_out"]["iqm"]["estimate"])
        for algorithm in ("ppo", "grpo")
        if (cells := rate_cells(found, algorithm))
    }
    if len(best) < 2:
        return None
    parts = [
        f"{interval(cell['held_out']['iqm'])} for {algorithm.upper()} at {cell['levels']['learning_rate']:g}"
        for algorithm, cell in best.items()
    ]
    row = pooled(found, "all learning rates")
    overall = (
        f" Over all rates, GRPO's held-out exact match minus PPO's is {interval(row['held_out'], signed=True)}."
        if row is not None
        else ""
    )
    return (
        f"**At the best of these rates** held-out exact match (interquartile mean; the best is chosen by the same runs "
        f"and so flattered) is {listed(parts)}.{overall}"
    )


def _published_setting(found: Row) -> str | None:
    row = pooled(found, "preset search_r1")
    if row is None:
        return None
    verdict = {1: "GRPO collapses more often", -1: "PPO collapses more often", 0: "undecided"}[sign(row["probability"])]
    return (
        f"**The published comparison is another one.** There GRPO takes five times the episodes and optimiser steps of "
        f"PPO; so compared, {row['collapsed'][0]} of {row['n']} GRPO runs and {row['collapsed'][1]} of {row['n']} PPO "
        f"runs collapsed, a difference of {interval(row['probability'], signed=True)}: {verdict}."
    )


def _moves(found: Row) -> str | None:
    rows = [*suspects(found), *environment(found)]
    if not rows:
        return None
    sentences = [
        f"Doubling the {_name(row, found)} multiplies the hazard of a collapse by {ratio(row['hazard_ratio'])} "
        f"({plural(row['n'], 'run')} of both algorithms)."
        for row in found["trends"]
        if row["algorithm"] == "both" and _is_decided_ratio(row["hazard_ratio"])
    ]
    for measure, what in (
        ("probability", "the share of collapses"),
        ("failure", "the share of runs that collapse or never learn"),
    ):
        for side, verb in ((1, "raised"), (-1, "lowered")):
            some = decided(rows, measure, side)
            if some:
                told = listed([_told(row, found, measure) for row in some])
                sentences.append(f"{what[0].upper()}{what[1:]} is {verb} by {told}.")
    changes = len({(row["factor"], row["level"]) for row in rows})
    if not sentences:
        return (
            f"**Why is undecided so far.** Of {plural(changes, 'change')} of one thing at a time, none has an effect "
            "on the share of collapses whose interval leaves out 0."
        )
    survive = sum(row["holm"] is not None and row["holm"] < 0.05 for row in rows)
    return (
        f"**Why.** {' '.join(sentences)} ({plural(changes, 'change')} of one thing at a time; after Holm's adjustment "
        f"for their number, {survive} of {plural(len(rows), 'line')} still {'has' if survive == 1 else 'have'} "
        "p < 0.05 for collapses.)"
    )


def _name(row: Row, found: Row) -> str:
    return found["factors"].get(row["factor"], {}).get("label", row["factor"])


def _is_decided_ratio(found: Row) -> bool:
    """Whether the interval of a ratio leaves out 1."""
    return (found["low"] or 0.0) > 1 or (found["high"] is not None and found["high"] < 1)


def _told(row: Row, found: Row, measure: str) -> str:
    return f"{label(row, found['factors'])} ({_who(row)}: {interval(row[measure], signed=True)})"


def _who(row: Row) -> str:
    return "both algorithms" if row["algorithm"] == "both" else row["algorithm"].upper()


def _warns(found: Row) -> str | None:
    rows = [row for row in found["indicators"] if row["rules"] is not None and row["runs"] == "all"]
    good = [
        row for row in rows if row["detection"]["estimate"] - row["false_alarms"]["estimate"] >= JUDGED
    ]  # they stand in that order
    if not rows:
        counted = next(iter(found["indicators"]), None)
        if counted is None:
            return None
        return (
            f"**What warns is not known yet:** with {plural(counted['collapsed'], 'collapse')} among "
            f"{plural(counted['collapsed'] + counted['kept'], 'run')} no rule can be chosen on one half of the seeds "
            "and judged on the other."
        )
    if not good:
        return (
            f"**Nothing warns well.** For none of {len(rows)} indicators is the share of detected collapses above that "
            f"of false alarms by {JUDGED:g} or more, on runs that its rule had not seen."
        )
    told = [
        f"{row['label']} ({number(row['detection']['estimate'])} of collapses at "
        f"{number(row['false_alarms']['estimate'])} false alarms, "
        f"{plural(round(row['lead']['estimate'] or 0), 'update')} before)"
        for row in good[:3]
    ]
    pairs = max(row["concordance_pairs"] for row in good[:3])
    inside = [f"{number(row['concordance'])} for {row['label']}" for row in good[:3] if row["concordance"] is not None]
    return f"**What warns best:** {listed(told)}, judged on runs that the rules had not seen. " + (
        f"Within one cell, where settings cannot give it away, the run that collapsed was the more alarming one in a "
        f"share of pairs of {listed(inside)} (chance is 0.5; {plural(pairs, 'pair')})."
        if inside
        else f"Whether they do more than tell settings apart is not known: there are {plural(pairs, 'pair')} of a run "
        "that collapsed and one that did not within a cell."
    )


def _helps(found: Row) -> str | None:
    rows = remedies(found)
    if not rows:
        return None
    fewer, higher = decided(rows, "failure", -1), decided(rows, "held_out", 1)
    sentences = [
        f"{what} with {listed([_told(row, found, measure) for row in some])}"
        for some, measure, what in (
            (fewer, "failure", "fewer runs that collapse or never learn"),
            (higher, "held_out", "higher held-out exact match"),
        )
        if some
    ]
    count = len({(row["factor"], row["level"]) for row in rows})
    if not sentences:
        return (
            f"**What helps is undecided** for each of {plural(count, 'remedy') if count == 1 else f'{count} remedies'}."
        )
    return f"**What helps,** of {count} remedies at the learning rate of the centre: {'; '.join(sentences)}."


def _paper(found: Row) -> str | None:
    verdicts: list[Any] = [row["verdict"] for row in found["comparison"]]
    if not verdicts:
        return None
    counts = tally(verdicts)
    return f"**Beside the papers:** of {plural(len(verdicts), 'published direction')} that runs speak of: {counts}."
