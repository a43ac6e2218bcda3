"""The sections of docs/findings.md on effects, indicators, papers and definitions, from ``analysis.json`` alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

from benchmarks.collapse.comparison import VERDICTS
from benchmarks.collapse.findings_answer import label
from benchmarks.collapse.findings_text import (
    Row,
    direction,
    interval,
    number,
    of,
    p_value,
    plural,
    ratio,
    seeds,
    table,
)
from benchmarks.collapse.indicators import SMOOTH, SUSTAINED, WINDOW

COLLAPSES, SCORES = ("more collapses", "fewer collapses"), ("higher", "lower")
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
    collapses, scores = direction(row["probability"], *COLLAPSES), direction(row["held_out"], *SCORES)
    if collapses == scores == "undecided":
        return "undecided"
    parts = [collapses if collapses != "undecided" else "", f"exact match {scores}" if scores != "undecided" else ""]
    return ", ".join(part for part in parts if part)


def effects(found: Row, family: str, title: str, command: str) -> list[str]:
    families = {"causes": ("rates", "causes")}.get(family, (family,))
    rows = [row for row in found["effects"] if row["family"] in families]
    if not rows:
        return []
    order = {"both": 0, "grpo": 1, "ppo": 2}
    rows.sort(
        key=lambda row: (
            [*found["factors"]].index(row["factor"]) if row["factor"] in found["factors"] else 99,
            row["level"],
            order[row["algorithm"]],
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
        f"(`{command} --groups {' '.join(families)}`); columns as above. With {plural(few, 'pair')} in a line, no "
        f"result whatever has a smaller p than {smallest:.2g}, so single lines cannot survive an adjustment for "
        f"{len(rows)} of them; lines over both algorithms have twice the runs.",
        contrast_table(rows, [label(row, found["factors"]) for row in rows], "changed / centre"),
        *_trends(found, families),
        *_common(rows, found["factors"]),
    ]


def _trends(found: Row, families: Sequence[str]) -> list[str]:
    lines = [
        [
            f"{_name(found, row['factor'])}, doubled",
            {"both": "both", "grpo": "GRPO", "ppo": "PPO"}.get(row["algorithm"], row["algorithm"]),
            f"{row['collapsed']} of {row['n']}",
            ratio(row["hazard_ratio"]),
            p_value(row["p_value"]),
        ]
        for row in found["trends"]
        if row["group"] in families
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


def indicators(found: Row) -> list[str]:
    rows = [row for row in found["indicators"] if row["rules"] is not None]
    if not found["indicators"]:
        return []
    after = found["collapse_after_peak"]
    parts = [
        "## What warns of a collapse",
        f'Each metric is averaged over {SMOOTH} updates. "Change" gives an alarm when it has left the run\'s own '
        f'healthy window, the {WINDOW} updates up to the best exact match so far; "level", when it passes a threshold '
        f"that is the same for all runs; either for {SUSTAINED} updates in a row and before the collapse. Form, "
        "direction and threshold are chosen on half of the seeds and judged on the other half, then the other way "
        "round. Detection is over runs that collapsed, false alarms over runs that learned and did not. Concordance "
        "asks within a cell how often the run that collapsed came closer to an alarm: 0.5 is chance, and a metric that "
        f"merely tells settings apart has no more (– with fewer than ten pairs). The onset came {interval(after, 0)} updates after "
        "the best exact match (median).",
    ]
    if not rows:
        counted = found["indicators"][0]
        return [
            *parts,
            f"Of the runs so far {counted['collapsed']} collapsed and {counted['kept']} learned and did not: too few "
            "in one half of the seeds to choose rules.",
        ]
    few = [row["label"] for row in found["indicators"] if row["rules"] is None and row["runs"] == rows[0]["runs"]]
    if few:
        parts.append(f"With too few collapses in one half of the seeds, no rule was chosen for: {', '.join(few)}.")
    for name in dict.fromkeys(row["runs"] for row in rows):
        head = [
            "indicator",
            "collapsed / not",
            "detected",
            "false alarms",
            "updates before (median)",
            "concordance in cells",
            "rules",
        ]
        lines = [
            [
                f"{row['label']} (`{row['metric']}`)",
                f"{row['collapsed']} / {row['kept']}",
                interval(row["detection"]),
                interval(row["false_alarms"]),
                interval(row["lead"], 1),
                f"{number(row['concordance']) if row['concordance'] is not None else '–'} ({row['concordance_pairs']})",
                "; ".join(map(_rule, row["rules"])),
            ]
            for row in rows
            if row["runs"] == name
        ]
        parts += [
            {"all": "### All runs", "grpo": "### GRPO", "ppo": "### PPO"}.get(name, f"### {name.upper()}"),
            table(head, lines),
        ]
    return parts


def _rule(rule: Row) -> str:
    if rule["threshold"] is None or abs(rule["threshold"]) == float("inf"):
        return "none is better than chance"
    beyond = "above" if rule["direction"] > 0 else "below"
    return f"{rule['form']} {beyond} {rule['direction'] * rule['threshold']:.3g}"


def papers(found: Row) -> list[str]:
    rows = found["comparison"]
    if not rows:
        return []
    verdicts = [row["verdict"] for row in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in VERDICTS)
    measures = {
        "early": "exact match, first half of training",
        "collapse": "share of collapsed runs",
        "held_out": "held-out exact match",
    }
    lines = [
        [
            row["statement"] + (f", preset {row['preset']}" if row["preset"] else ""),
            row["source"],
            number(row["published"], 3, signed=True) if row["published"] is not None else "–",
            interval(row["difference"], signed=True),
            measures.get(row["measure"], f"`{row['measure']}`"),
            f"{row['n']} ({plural(len(row['seeds']), 'seed')})",
            row["verdict"],
        ]
        for row in rows
    ]
    return [
        "## The papers, direction by direction",
        f"{counts}. A direction agrees when the whole interval of our difference has its sign, contradicts when it has "
        "the other, and is undecided when it holds 0. The published figures come from models of 3 and 7 billion "
        "parameters and seven data sets, and hold no interval; the tiny agent copies words from short facts. Several "
        "published figures disagree among themselves, so not all can agree with ours. Cells are in `analysis.json`, "
        "and the directions with their sources in `benchmarks/collapse/published.toml`.",
        table(["published", "source", "difference there", "ours", "of what", "pairs or runs", "verdict"], lines),
    ]


def sensitivity(found: Row) -> list[str]:
    rows = found["sensitivity"]
    if not rows or not found["runs"]:
        return []
    names = list(rows[0]["algorithms"])
    lines = [
        [
            f"{row['window']} updates",
            f"{row['fraction']:g}",
            f"{row['patience']} updates",
            f"{row['floor']:g}",
            *(f"{row['algorithms'][name]['collapsed']} of {row['algorithms'][name]['n']}" for name in names),
            interval(row["grpo_minus_ppo"], signed=True),
        ]
        for row in rows
    ]
    pairs = rows[0]["pairs"]
    return [
        "### If a collapse were defined otherwise",
        "The first line is the definition that is used, each other one changes one number of it. The difference is "
        f"over all {plural(pairs, 'pair')} of a GRPO and a PPO run that are equal in everything both have, with "
        "Student's interval over seeds.",
        table(
            ["mean over", "part of the best", "for", "best at least", *(name.upper() for name in names), "GRPO − PPO"],
            lines,
        ),
    ]
