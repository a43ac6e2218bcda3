"""The page about one training run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from search_gym.viewer import charts
from search_gym.viewer.charts import Line, Panel
from search_gym.viewer.episodes import pack
from search_gym.viewer.page import (
    BROWSER,
    Section,
    bar,
    charts_grid,
    command,
    duration,
    interval,
    settings,
    text,
    to_page,
)
from search_gym.viewer.run_folder import Alarm, Run, Scores, load_run

LABELS = {
    "before": "Before training",
    "no-search": "No search",
    "static-rag": "Static RAG",
    "static-rag-max": "Static RAG, longer list",
    "built-in": "After training, built-in functions",
    "after": "After training",
    "single-search": "One search, scripted",
    "oracle": "Oracle",
}

Limits = tuple[float | None, float | None]

# Title, y-axis limits, and the metrics with their labels; "rollout/em/" stands for every key that begins so.
CURVES: tuple[tuple[str, Limits, dict[str, str]], ...] = (
    ("Exact match of sampled episodes", (0.0, 1.0), {"rollout/em/": "", "rollout/em": "all"}),
    ("Searches per episode", (0.0, None), {"rollout/searches": ""}),
    ("Share of valid turns", (0.0, 1.0), {"rollout/valid_turns": ""}),
    ("Entropy per token, nats", (0.0, None), {"loss/entropy": ""}),
    ("KL per token, nats", (0.0, None), {"loss/kl": "to the base model", "loss/approx_kl": "old policy to new"}),
    ("Tokens per second", (0.0, None), {"time/tokens_per_second": ""}),
)
INDICATORS: tuple[tuple[str, Limits, dict[str, str]], ...] = (
    ("Reward", (None, None), {"rollout/reward": ""}),
    ("Tokens per episode", (0.0, None), {"rollout/sampled_tokens": ""}),
    ("Truncated episodes", (0.0, 1.0), {"rollout/truncated": ""}),
    (
        "Log-likelihood of episodes, nats per token",
        (None, 0.0),
        {"rollout/logprob_correct": "correct", "rollout/logprob_incorrect": "incorrect"},
    ),
    (
        "Likelihood that a step gives, nats",
        (None, None),
        {"loss/likelihood_gain_good": "good actions", "loss/likelihood_gain_bad": "bad actions"},
    ),
    ("Gradient norm", (0.0, None), {"loss/grad_norm": ""}),
    ("Clip fraction", (0.0, None), {"loss/clip_fraction": ""}),
    ("Largest ratio", (None, None), {"loss/ratio_max": ""}),
    ("Groups without variance", (0.0, 1.0), {"rollout/zero_variance_groups": ""}),
    (
        "Queries",
        (0.0, 1.0),
        {"rollout/distinct_queries": "distinct", "rollout/query_retrieval": "tell the question"},
    ),
    ("Explained variance", (None, 1.0), {"loss/explained_variance": ""}),
    ("Learning rate", (0.0, None), {"loss/learning_rate": ""}),
)


def write_run_page(run_dir: Path, output: Path) -> None:
    """Write the page of a run, and its curves into ``curves.png`` and ``curves.svg`` beside it.

    Raises:
        SearchGymError: a file is missing or malformed. MissingDependencyError: matplotlib is not installed.
    """
    run = load_run(run_dir)
    panels = panels_of(run.metrics, CURVES)
    if panels:
        charts.save(panels, output.with_name("curves"))
    output.write_text(run_page(run), encoding="utf-8")


def run_page(run: Run) -> str:
    """The page as HTML."""
    marks = [alarm.update for alarm in run.alarms]
    sections: list[Section] = [
        ("scores", "Exact match on held-out questions", _scores(run.scores)),
        ("curves", "Learning curves", _curves(run, marks)),
        ("alarms", "Alarms", _alarms(run.alarms)),
        ("transcripts", "Transcripts", BROWSER if run.samples else ""),
        ("indicators", "Indicators", charts_grid(_svgs(run.metrics, INDICATORS, marks))),
        ("reproduce", "Reproduce", _reproduce(run)),
        ("settings", "Configuration", settings(run.config)),
    ]
    packed = pack([("", run.samples)], labels=LABELS) if run.samples else ""
    return to_page(run.name, _lead(run), sections, episodes=packed)


def panels_of(
    metrics: Sequence[Mapping[str, float]],
    wanted: Sequence[tuple[str, Limits, dict[str, str]]],
    marks: Sequence[float] = (),
) -> list[Panel]:
    """The panels of those metrics that have two finite values or more."""
    panels = []
    for title, limits, names in wanted:
        lines = [line for line in _lines(metrics, names) if len(line.x) > 1]
        if lines:
            panels.append(Panel(title, lines, limits, marks=marks))
    return panels


def _lines(metrics: Sequence[Mapping[str, float]], wanted: Mapping[str, str]) -> list[Line]:
    """Each wanted metric where it is finite."""
    found: dict[str, str] = {}
    for key, label in wanted.items():
        if key.endswith("/"):
            found |= {name: name.removeprefix(key) for row in metrics for name in sorted(row) if name.startswith(key)}
        else:
            found[key] = label or key.rpartition("/")[2]
    lines = []
    for color, (name, label) in enumerate(found.items()):
        finite = [(i, row) for i, row in enumerate(metrics) if math.isfinite(row.get(name, math.nan))]
        points = [(row.get("update", i), row[name]) for i, row in finite]
        x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
        lines.append(Line(label, x, y, color, smoothed=True))
    return lines


def _lead(run: Run) -> str:
    algorithm = run.config.get("algorithm")
    facts = [f"{len(run.metrics):,} updates"]
    if run.seconds is not None and math.isfinite(run.seconds):
        facts.append(f"{duration(run.seconds)} of training")
    if run.seed is not None:
        facts.append(f"seed {run.seed}")
    trained = f" with {str(algorithm).upper()}" if algorithm else ""
    lead = f"A language model trained{trained} to reason and to search before it answers: {', '.join(facts)}."
    return f"<p>{text(lead)}</p>{_cards(run)}"


def _cards(run: Run) -> str:
    """What is worth knowing at first sight."""
    by_name = {scores.name: scores for scores in run.scores}
    cards = []
    if "after" in by_name and "before" in by_name:
        before, after = by_name["before"], by_name["after"]
        cards = [
            (f"{kind}, before and after", f'{number(before.em.get(kind))}<i aria-label="to">→</i><b>{number(em)}</b>')
            for kind, em in after.em.items()
        ]
    elif run.scores:
        cards = [(f"{kind}, held out", f"<b>{number(em)}</b>") for kind, em in run.scores[-1].em.items()]
    else:
        em = [row["rollout/em"] for row in run.metrics if math.isfinite(row.get("rollout/em", math.nan))]
        window = max(1, min(10, len(em)))
        if em:
            cards = [
                ("exact match at first", number(sum(em[:window]) / window)),
                (f"in the last {window} updates", f"<b>{number(sum(em[-window:]) / window)}</b>"),
            ]
    if run.alarms:
        cards.append(("alarms", f"<b>{len(run.alarms)}</b>"))
    return "".join(["<dl class=cards>", *(f"<div><dt>{text(k)}</dt><dd>{v}</dd></div>" for k, v in cards), "</dl>"])


def _scores(rows: Sequence[Scores]) -> str:
    if not rows:
        return ""
    kinds = list(dict.fromkeys(kind for scores in rows for kind in scores.em))
    head = "".join(f'<th scope="col">{text(kind)}</th>' for kind in kinds)
    body = "".join(_row(scores, kinds) for scores in rows)
    explained = "Small numbers and whiskers are 95 % intervals." if any(row.intervals for row in rows) else ""
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th scope="col">Policy</th>{head}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="note">{explained}</p>'
    )


def _row(scores: Scores, kinds: Sequence[str]) -> str:
    name = scores.name
    cells = "".join(_cell(scores.em.get(kind), scores.intervals.get(kind)) for kind in kinds)
    row = f'<th scope="row">{text(LABELS.get(name, name))}</th>{cells}'
    return f'<tr class="{"after" if name == "after" else ""}">{row}</tr>'


def _cell(em: float | None, bounds: tuple[float, float] | None) -> str:
    if em is None:
        return "<td>–</td>"
    low, high = bounds or (None, None)
    return f"<td>{number(em)}{interval(low, high)}{bar(em, low, high)}</td>"


def number(value: float | None, digits: int = 2) -> str:
    """A number to read; a dash where it is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _curves(run: Run, marks: Sequence[float]) -> str:
    svgs = _svgs(run.metrics, CURVES, marks)
    if not svgs:
        return '<p class="note">Too few updates for curves.</p>'
    dotted = " Dotted: an alarm." if marks else ""
    files = "The same curves: curves.png and curves.svg."
    return f'{charts_grid(svgs)}<p class="note">Thin: every update. Thick: centred moving average.{dotted} {files}</p>'


def _svgs(
    metrics: Sequence[Mapping[str, float]],
    wanted: Sequence[tuple[str, Limits, dict[str, str]]],
    marks: Sequence[float],
) -> list[tuple[str, str, str]]:
    panels = panels_of(metrics, wanted, marks)
    return [(panel.title, charts.to_svg(panel, titled=False), "") for panel in panels]


def _alarms(alarms: Sequence[Alarm]) -> str:
    items = "".join(
        f"<li>update {alarm.update:,}: <b>{text(alarm.name)}</b>: {text(alarm.message)}</li>" for alarm in alarms
    )
    return f'<ul class="alarms">{items}</ul>' if alarms else ""


def _reproduce(run: Run) -> str:
    return command(str(run.config["command"])) if run.config.get("command") else ""
