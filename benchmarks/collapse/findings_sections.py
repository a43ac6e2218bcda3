"""The sections of docs/findings.md on indicators, papers and other definitions, from ``analysis.json`` alone."""

from __future__ import annotations

from benchmarks.collapse.comparison import tally
from benchmarks.collapse.findings_text import Row, interval, number, plural, table
from benchmarks.collapse.indicators import SMOOTH, SUSTAINED, WINDOW


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
        f"merely tells settings apart has no more (– with fewer than ten pairs). The onset came "
        f"{interval(after, 0)} updates after the best exact match (median).",
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
    counts = tally(verdicts)
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
