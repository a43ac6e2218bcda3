"""The page about a study: what was found, how sure that is, and every run that it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_gym.viewer import study_charts
from search_gym.viewer.episodes import pack
from search_gym.viewer.page import BROWSER, Section, charts_grid, command, duration, legend, settings, text, to_page
from search_gym.viewer.study_charts import COLOR_OF
from search_gym.viewer.study_folder import REMEDY, Study, Table, load_study, samples_of
from search_gym.viewer.study_tables import cells_table, effects_table, published_table

MOST_TOKENS = 400_000
"""Tokens of transcripts that a page holds: about two megabytes."""


def write_study_page(folder: Path, output: Path) -> None:
    """Write the page of a study, and its charts as PNG and SVG into ``plots/`` beside it.

    Raises:
        SearchGymError: a file is missing or malformed. MissingDependencyError: matplotlib or pyarrow is not installed.
    """
    study = load_study(folder)
    table = Table(folder) if study.finished else None
    figures = study_charts.figures_of(study, table)
    study_charts.save_all(figures, output.parent / "plots")
    output.write_text(study_page(study, figures), encoding="utf-8")


def study_page(study: Study, figures: study_charts.Figures) -> str:
    """The page as HTML."""
    plan, analysis = study.plan, study.analysis
    samples, left_out = samples_of(study, MOST_TOKENS)
    sections: list[Section] = [
        ("curves", "Survival and learning curves", _groups(study, figures)),
        ("effects", "What changes what", effects_table(plan, analysis)),
        ("indicators", "Indicators", _indicators(study, figures)),
        ("published", "Beside what was published", published_table(analysis)),
        ("cells", "Cells", cells_table(study)),
        ("transcripts", "Transcripts", _transcripts(len(samples), left_out) if samples else ""),
        ("reproduce", "Reproduce", _reproduce(study)),
        ("settings", "Configuration", _settings(plan)),
    ]
    packed = pack([(name, episodes) for name, episodes in samples]) if samples else ""
    return to_page(str(plan.get("title") or plan.get("name")), _lead(study), sections, episodes=packed)


def _lead(study: Study) -> str:
    plan, finished = study.plan, study.finished
    seconds = sum(run.get("cpu_seconds") or 0.0 for run in finished)
    seeds = sorted({run["seed"] for run in finished})
    facts = [f"{len(plan['cells'])} cells", f"seeds {', '.join(map(str, seeds)) or 'none yet'}"]
    if plan.get("budget", {}).get("updates"):
        facts.append(f"{plan['budget']['updates']} updates a run")
    if seconds:
        facts.append(f"{duration(seconds)} of one core in all")
    cards = [("runs finished", f"<b>{len(finished)}</b> of {len(study.runs)}")]
    outcomes = Counter((_algorithm_of(study, cell), kind) for (cell, _), kind in study.outcomes.items())
    for algorithm in sorted({algorithm for algorithm, _ in outcomes}):
        runs = sum(count for (name, _), count in outcomes.items() if name == algorithm)
        collapsed, never = outcomes[algorithm, "collapsed"], outcomes[algorithm, "never learned"]
        more = f"<small>{never} never learned</small>" if never else ""
        cards.append((f"{algorithm.upper()} runs collapsed", f"<b>{collapsed}</b> of {runs}{more}"))
    definition = study.analysis.get("definition", {}).get("words", "")
    missing = len(study.runs) - len(finished)
    unfinished = f"<p>{missing} runs are not finished: every figure rests on those that are.</p>" if missing else ""
    return (
        f"<p>{text(', '.join(facts))}.</p>{unfinished}{f'<p>{text(definition)}</p>' if definition else ''}"
        f'<dl class="cards">{"".join(f"<div><dt>{text(k)}</dt><dd>{v}</dd></div>" for k, v in cards)}</dl>'
        '<p class="note">The counts are over all settings of the study, which are not the same for every algorithm; '
        "what an algorithm changes is compared in pairs below.</p>"
    )


def _algorithm_of(study: Study, cell: str) -> str:
    return next((c["algorithm"] for c in study.plan["cells"] if c["cell"] == cell), "")


def _groups(study: Study, figures: study_charts.Figures) -> str:
    if not study.analysis:
        return (
            '<p class="note">The statistics of this study have not been made. Make them with:</p>'
            f"{command(f'{REMEDY} {study.folder}')}"
        )
    parts = []
    for number, group in enumerate(study.plan.get("groups", ())):
        found = [(figure.heading, figure.svgs()) for figure in figures.groups.get(group["name"], ())]
        if not any(svgs for _, svgs in found):
            continue
        grids = "".join(
            f"<h3>{text(heading)}</h3>{charts_grid(svgs, small=len(svgs) > 3)}" for heading, svgs in found if svgs
        )
        algorithms = {cell["algorithm"] for cell in study.plan["cells"] if group["name"] in cell.get("groups", ())}
        # In a fractional design a line is a level, and each chart has a legend.
        keys = "" if group["design"] == "fraction" else _legend(sorted(algorithms, key=lambda x: COLOR_OF.get(x, 9)))
        coverage = next((c for c in study.analysis["coverage"]["groups"] if c["group"] == group["name"]), None)
        runs = f" {coverage['finished']} of {coverage['planned']} runs." if coverage else ""
        parts.append(
            f"<details{' open' if number == 0 else ''}><summary>{text(group['question'])}</summary>"
            f'<p class="note">Fair by {text(group["fairness"])}.{runs}</p>{keys}{grids}</details>'
        )
    note = (
        "Bands are 95 % intervals: bootstrap over runs for exact match, Greenwood on the log-log scale for survival. A "
        "cell with one run has none. Exact match is that of sampled episodes, averaged over the last few updates. The "
        "same charts: plots/*.png and plots/*.svg."
    )
    return f'{"".join(parts)}<p class="note">{note}</p>' if parts else ""


def _legend(algorithms: Sequence[str]) -> str:
    return legend([(name.upper(), COLOR_OF.get(name, 3), False) for name in algorithms])


def _indicators(study: Study, figures: study_charts.Figures) -> str:
    if figures.indicators is None:
        return ""
    grid = charts_grid(figures.indicators.svgs(), small=True)
    note = (
        "Mean over runs and its 95 % bootstrap interval, at updates where two runs or more have the metric. A caption "
        "says what it is worth as a warning, by a rule chosen on half of the seeds and judged on the others; where "
        "there is none, too few runs have collapsed, or have not, to judge it."
    )
    return f'{legend(figures.indicator_keys)}{grid}<p class="note">{note}</p>' if grid else ""


def _transcripts(runs: int, left_out: int) -> str:
    more = (
        f" {left_out} more runs have transcripts that would make the page too large; "
        "search-gym view on the folder of a run shows them."
        if left_out
        else ""
    )
    return f'<p class="note">Answers to held-out questions, of {runs} runs.{more}</p>{BROWSER}'


def _reproduce(study: Study) -> str:
    plan = study.plan
    facts = [f"{name} {plan[name]}" for name in ("commit", "torch") if plan.get(name)]
    machine = plan.get("machine") or {}
    if machine.get("cpus"):
        facts.append(f"{machine['cpus']} CPU cores, {machine.get('architecture', '')}")
    told = ", ".join(facts)
    return (
        f"{command(str(plan.get('command', '')))}{command(f'python -m benchmarks.report {study.folder}')}"
        f'<p class="note">{text(told)}. Every run has its own config.json and command in runs/CELL/seed-N.</p>'
    )


def _settings(plan: Mapping[str, Any]) -> str:
    names = ("name", "budget", "evaluation", "seeds", "center")
    return settings({name: plan[name] for name in names if name in plan} | {"factors": plan.get("factors", {})})
