"""The sections of docs/findings.md on what a change does, from ``analysis.json`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from benchmarks.collapse.estimates import FEWEST_SEEDS
from benchmarks.collapse.findings_answer import is_remedy, label
from benchmarks.collapse.findings_text import Row, direction, interval, of, p_value, plural, ratio, seeds, table

CONTRAST = (
    "A pair is two runs of one seed that differ in nothing else. Differences in the share of collapsed runs have the "
    "interval of Agresti and Caffo where one setting is compared, and Student's over seeds where several are; so have"
    " those in the share that failed, which is to say collapsed or never learned. Differences in held-out exact match"
    " have Student's, from three seeds on. These decide. Hazard ratios (Cox, Firth's penalty, profile likelihood), "
    "the interquartile mean (IQM) and the probability that a run of the first kind beats one of the second on held-"
    "out questions (both after rliable, bootstrap intervals) stand beside. p is Fisher's exact test of the counts, "
    "and in brackets adjusted after Holm for the lines of its kind."
)


def setting(row: Row) -> str:
    return row["level"] if len(row["cells"]) == 1 else f"{row['level']} ({len(row['cells'])} settings)"


def contrast_table(rows: Sequence[Row], names: Sequence[str], counted: str) -> str:
    head = [
        "change", "algorithm", "pairs", f"collapsed ({counted})", "Δ collapsed", "hazard ratio", "p (Holm)", "Δ failed",
        "Δ exact match", "Δ IQM", "better", "verdict",
    ]  # fmt: skip
    lines = [
        [
            name,
            {"both": "both", "grpo": "GRPO", "ppo": "PPO"}[row["algorithm"]],
            str(row["n"]),
            of(row["collapsed"], row["n"]),
            interval(row["probability"], signed=True),
            ratio(row["hazard_ratio"]),
            f"{p_value(row['p_value'])} ({p_value(row['holm'])})",
            interval(row["failure"], signed=True),
            interval(row["held_out"], signed=True),
            interval(row["iqm"], signed=True),
            interval(row["improvement"]),
            _verdict(row),
        ]
        for row, name in zip(rows, names, strict=True)
    ]
    if all(row["factor"] == "algorithm" for row in rows):
        head.pop(1)
        lines = [[line[0], *line[2:]] for line in lines]
    return table(head, lines)


def _verdict(row: Row) -> str:
    found = [
        direction(row.get(measure), *words)
        for measure, words in (
            ("probability", ("more collapses", "fewer collapses")),
            ("failure", ("more failures", "fewer failures")),
            ("held_out", ("exact match higher", "exact match lower")),
        )
    ]
    return ", ".join(word for word in found if word != "undecided") or "undecided"


def effects(found: Row, rows: Sequence[Row], title: str, command: str) -> list[str]:
    """A section on some rows of ``effects``; nothing where there are none."""
    rows = _told(rows)
    if not rows:
        return []
    families = [*dict.fromkeys(row["family"] for row in rows)]
    factors, order = [*found["factors"]], ["both", "grpo", "ppo"]
    rows.sort(
        key=lambda row: (
            factors.index(row["factor"]) if row["factor"] in factors else len(factors),
            row["level"],
            order.index(row["algorithm"]),
        )
    )
    few = min(row["n"] for row in rows)
    smallest = _smallest_p(few)
    center = found["study"]["center"] or {}
    named = ", ".join(
        f"{found['factors'][name]['label']} {level}" for name, level in center.items() if name in found["factors"]
    )
    return [
        title,
        f"Each line changes one thing at the centre of the study{f' ({named})' if named else ''} "
        f"(`{command} --groups {' '.join(families)}`); columns as above. With {plural(few, 'pair')}, as in the "
        f"shortest line here, no result whatever has a smaller p than {smallest:.2g}"
        + (f", too large for an adjustment for {len(rows)} lines." if smallest * len(rows) > 0.05 else "."),
        contrast_table(rows, [label(row, found["factors"]) for row in rows], "changed / centre"),
        *_trends(found, rows),
        *_common(rows, found["factors"]),
    ]


def _told(rows: Sequence[Row]) -> list[Row]:
    """All lines, but of a single algorithm only those with `FEWEST_SEEDS` pairs where both together have a line."""
    both = {(row["factor"], row["level"]) for row in rows if row["algorithm"] == "both"}
    return [
        row
        for row in rows
        if row["algorithm"] == "both" or row["n"] >= FEWEST_SEEDS or (row["factor"], row["level"]) not in both
    ]


def _trends(found: Row, rows: Sequence[Row]) -> list[str]:
    """Where a factor moves in both directions, in two tables, its trend stands with its higher levels."""
    told = {row["factor"] for row in rows if not is_remedy(row)}
    lines = [
        [
            f"{_name(found, row['factor'])}, doubled",
            {"both": "both", "grpo": "GRPO", "ppo": "PPO"}.get(row["algorithm"], row["algorithm"]),
            f"{row['collapsed']} of {row['n']}",
            ratio(row["hazard_ratio"]),
            p_value(row["p_value"]),
        ]
        for row in found["trends"]
        if row["factor"] in told
    ]
    if not lines:
        return []
    return [
        "Over all levels that a crossing has, as one trend (Cox, Firth's penalty, penalised likelihood ratio test; the "
        "algorithm is a covariate where both are together):",
        table(["change", "algorithm", "collapsed", "hazard ratio", "p"], lines),
    ]


def _smallest_p(pairs: int) -> float:
    """Fisher's p when all of one side collapse and none of the other."""
    return min(1.0, 2 / comb(2 * pairs, pairs))


def _common(rows: Sequence[Row], factors: Row) -> list[str]:
    """What was learned, asked in one environment, where the environment itself was changed."""
    chosen = [row for row in rows if row["factor"] in ("retrieval_noise", "top_k")]
    if not chosen:
        return []
    lines = [
        [label(row, factors), row["algorithm"], str(row["n"]), interval(row["held_out_common"], signed=True)]
        for row in chosen
    ]
    return [
        "Where the environment changed, the same policies were also asked in that of the centre:",
        table(["change", "algorithm", "pairs", "held-out exact match there, difference"], lines),
    ]


def fraction(found: Row, command: str) -> list[str]:
    design = found["fraction"]
    if design is None or not design["n"]:
        return []
    parts = [
        "## All suspects at once",
        f"A fractional factorial design: {design['cells']} of {design['cells_planned']} cells have runs "
        f"({plural(design['n'], 'run')}, seeds {seeds(design['seeds'])}; {design['collapsed']} collapsed, "
        f"{design['never_learned']} never learned; `{command} --groups {design['group']}`).",
    ]
    if design["effects"] is None:
        return [*parts, "These runs do not yet tell the factors apart, so there are no effects."]
    head = [
        "factor",
        "runs",
        "collapsed",
        "share of collapses",
        "hazard ratio",
        "p (Holm)",
        "held-out exact match",
        "p (Holm)",
        "verdict",
    ]
    rows = [
        [
            f"{_name(found, row['factor'])} {_level(row['level'])} − {_level(row['reference'])}",
            f"{row['n'][0]} / {row['n'][1]}",
            f"{row['collapsed'][0]} / {row['collapsed'][1]}",
            interval(row["probability"], signed=True),
            ratio(row["hazard_ratio"]),
            f"{p_value(row['p_value'])} ({p_value(row['holm'])})",
            interval(row["held_out"], signed=True),
            f"{p_value(row['p_held_out'])} ({p_value(row['holm_held_out'])})",
            _verdict(row),
        ]
        for row in design["effects"]
    ]
    return [
        *parts,
        "Main effects from a linear model with seeds as blocks (robust errors, HC3), and hazard ratios from Cox's "
        "model with Firth's penalty; the p beside a hazard ratio is its penalised likelihood ratio test. No main "
        "effect is confused with an interaction of two factors, but interactions are with each other.",
        table(head, rows),
    ]


def _name(found: Row, factor: str) -> str:
    return found["factors"].get(factor, {}).get("label", factor)


def _level(level: Any) -> str:
    return (
        {True: "on", False: "off"}[level]
        if isinstance(level, bool)
        else f"{level:g}"
        if isinstance(level, float)
        else str(level)
    )
