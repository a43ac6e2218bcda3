"""docs/findings.md as text, from ``analysis.json`` alone."""

from __future__ import annotations

from benchmarks.collapse.findings_answer import answer, environment, rate_cells, remedies, suspects
from benchmarks.collapse.findings_effects import CONTRAST, contrast_table, effects, fraction, setting
from benchmarks.collapse.findings_sections import indicators, papers, sensitivity
from benchmarks.collapse.findings_text import Row, interval, number, plural, seeds, table

PLOTS = {
    "collapse_curves": "Exact match of sampled training episodes by learning rate",
    "collapse_survival": "Share of runs that have not collapsed, by learning rate",
}


def page(found: Row) -> str:
    """The page. What no finished run speaks of is not on it."""
    study = found["study"]
    command = f"python -m benchmarks.collapse{_option(study['name'])}"
    parts = [
        f"<!-- made by `python -m benchmarks.collapse.findings` from the results of `{command}`; do not edit -->",
        "# Does GRPO collapse, does PPO not, and why?",
        *_opening(found, command),
        *_coverage(found),
        *_definition(found),
        *_rates(found, command),
        *effects(found, suspects(found), "## What moves the risk", command),
        *effects(found, remedies(found), "## What helps", command),
        *effects(found, environment(found), "## Retriever, reward and base model", command),
        *fraction(found, command),
        *indicators(found),
        *papers(found),
        *sensitivity(found),
        *_limits(found),
        *_cells(found, command),
    ]
    return "\n\n".join(parts) + "\n"


def _option(name: str) -> str:
    return {"default": "", "full": " --full", "quick": " --quick"}.get(name, f" --study {name}.toml")


def _opening(found: Row, command: str) -> list[str]:
    study, coverage, budget = found["study"], found["coverage"], found["study"]["budget"]
    finished, planned = coverage["runs_finished"], coverage["runs_planned"]
    part = (
        f"All {planned} runs of the study are finished."
        if finished == planned
        else f"**{finished} of {planned} runs are finished so far, in {coverage['cells_with_runs']} of "
        f"{coverage['cells_planned']} cells;** what follows rests on these alone, and every figure says on how many."
    )
    answers = [f"* {sentence}" for sentence in answer(found)]
    return [
        f"The tiny agent learns TinyWiki from scratch, {budget['updates']} updates of {budget['rollouts_per_update']} "
        f"episodes a run, again and again with one thing changed. {part} In brackets stand 95 % intervals; a "
        "difference whose interval holds 0 is called undecided.",
        "## The short answer",
        "\n".join(answers) if answers else "No run is finished: there is no answer yet.",
        f"All figures come from the folder that `{command}` writes (commit {_commits(found)}, torch "
        f"{study['torch']}, {study['machine']['cpus']} CPUs, {study['machine']['architecture']}), and "
        "`python -m benchmarks.collapse.findings FOLDER` makes this page of it. A cell's configuration is in "
        "`FOLDER/runs/CELL/seed-N/config.json`; its curve is `metrics.jsonl` beside it.",
    ]


def _commits(found: Row) -> str:
    return ", ".join(found["commits"]) or "unknown"


def _coverage(found: Row) -> list[str]:
    rows = [
        [
            group["group"],
            group["question"],
            f"{group['cells_with_runs']} of {group['cells']}",
            f"{group['finished']} of {group['planned']}",
            seeds(group["seeds"]) or "–",
            group["fairness"],
        ]
        for group in found["coverage"]["groups"]
    ]
    head = ["group", "question", "cells with runs", "finished runs", "seeds", "what is equal"]
    failed = found["coverage"]["runs_failed"]
    more = [f"{plural(failed, 'run')} failed for another reason, and {'is' if failed == 1 else 'are'} left out."]
    return ["## What it rests on", table(head, rows), *(more if failed else [])]


def _definition(found: Row) -> list[str]:
    flat = [row["collapsed"] for row in found["flat_policies"]]
    return [
        "## What a collapse is",
        f"{found['definition']['words']} (`benchmarks/collapse/definition.py`.) The questions of a round are harder or "
        f"easier by chance: of simulated runs whose policy never changes, between {min(flat):.1%} and {max(flat):.1%} "
        "are called collapsed by this definition, most where exact match is lowest. Having never learned is no "
        "collapse, so each table has both; so has the number of runs that ended at zero, without one right answer in "
        "the last rounds: there every group is tied and GRPO's gradient vanishes.",
    ]


def _rates(found: Row, command: str) -> list[str]:
    cells = [cell for algorithm in ("ppo", "grpo") for cell in rate_cells(found, algorithm)]
    if not cells:
        return []
    head = [
        "algorithm", "learning rate", "runs", "collapsed", "never learned", "ended at zero", "recovered",
        "probability of a collapse", "mean updates without", "best exact match", "held-out exact match",
    ]  # fmt: skip
    rows = [
        [
            cell["algorithm"].upper(),
            f"{cell['levels']['learning_rate']:g}",
            *(str(cell[name]) for name in ("n", "collapsed", "never_learned", "ended_at_zero", "recovered")),
            interval(cell["probability"]),
            interval(cell["mean_survival"], 1),
            interval(cell["best_em"]),
            interval(cell["held_out"]["iqm"]),
        ]
        for cell in cells
    ]
    parts = [
        "## PPO and GRPO by learning rate",
        f"Equal questions, episodes and optimiser steps (`{command} --groups rates`). The probability has the exact "
        "interval of Clopper and Pearson; the mean number of updates without a collapse is the area under the "
        "Kaplan-Meier curve; exact match is the interquartile mean over runs with a bootstrap interval, the best of "
        "sampled training episodes, and greedy on held-out questions at the end.",
        table(head, rows),
    ]
    parts += [f"![{text}](images/{name}.png)" for name, text in PLOTS.items()]
    parts += [
        "Lines are interquartile means over runs (curves) and Kaplan-Meier estimates (survival), bands 95 % intervals. "
        "A survival curve has no band before the first collapse."
    ]
    if found["algorithms"]:
        parts += [
            "### GRPO minus PPO",
            CONTRAST,
            contrast_table(found["algorithms"], [setting(row) for row in found["algorithms"]], "GRPO / PPO"),
        ]
    return parts


def _limits(found: Row) -> list[str]:
    cover = found["bootstrap_coverage"]
    told = ", ".join(f"{float(value):.0%} with {runs}" for runs, value in cover.items())
    return [
        "## What this cannot say",
        f"A bootstrap over few runs is too narrow: what is called a 95 % interval holds the truth in {told} runs "
        "(simulated from a normal distribution), so interquartile means and probabilities of being better decide "
        "nothing here. Pairs share a seed, and with it questions and order. Undecided means that so few runs cannot "
        "tell, not that there is no difference. Of many lines, one in twenty is decided by chance alone, which the "
        "adjusted p-values account for. And all of it is about one small model, one task and "
        f"{found['study']['budget']['updates']} updates: a collapse that needs more does not show.",
    ]


def _cells(found: Row, command: str) -> list[str]:
    if not found["cells"]:
        return []
    lines = [
        [
            f"`{cell['cell']}`",
            ", ".join(cell["groups"]),
            seeds(cell["seeds"]),
            f"{cell['collapsed']} / {cell['never_learned']} / {cell['ended_at_zero']} of {cell['n']}",
            interval(cell["best_em"]),
            interval(cell["held_out"]["iqm"]),
            ", ".join(f"{kind} {number(one['estimate'])}" for kind, one in cell["held_out"]["by_kind"].items()),
        ]
        for cell in found["cells"]
    ]
    return [
        "## Every cell",
        f"`FOLDER/runs/CELL/seed-N` holds each run; `{command} --list` shows the cells, and `python -m "
        "benchmarks.collapse.run FOLDER CELL SEED` makes one run again in a folder that has its `study.json`.",
        table(
            ["cell", "groups", "seeds", "collapsed / never learned / at zero", "best", "held-out", "by kind"],
            lines,
        ),
    ]  # fmt: skip
