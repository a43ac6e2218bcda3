"""``python -m agents.report runs/demo``: the learning curves and a self-contained page about a run, from its folder.

Reads ``config.json``, ``metrics.jsonl``, ``summary.json``, ``transcripts.jsonl`` and, where a run went back, the rows
that it gave up in ``abandoned.jsonl``; writes ``curves.png`` and ``report.html``. The transcripts hold the text of
every token, so neither the model nor its codec is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from agents import charts
from agents.health import Alarm
from agents.run_folder import Run, Sample, Scores, load_run
from search_gym.errors import SearchGymError
from search_gym.render import html_page, spans_to_html

LABELS = {
    "before": "Before training",
    "no-search": "No search",
    "static-rag": "Static RAG",
    "static-rag-max": "Static RAG, longer list",
    "after": "After training",
    "single-search": "One search, scripted",
    "oracle": "Oracle",
}


def write_report(run_dir: Path) -> Path:
    """Write ``curves.png`` and ``report.html`` into ``run_dir``, and return the path of the page.

    Raises:
        SearchGymError: a file is missing or malformed. MissingDependencyError: matplotlib is not installed.
    """
    run = load_run(run_dir)
    charts.write_png(run.metrics, run_dir / "curves.png")
    path = run_dir / "report.html"
    path.write_text(to_page(run), encoding="utf-8")
    return path


def to_page(run: Run) -> str:
    """The report as one HTML page without outside resources."""
    parts = (
        _header(run),
        _evaluation(run),
        _curves(run),
        _alarms(run.alarms),
        _transcripts(run.samples),
        _config(run.config),
    )
    return html_page(f"<main>{''.join(parts)}</main>", f"{run.name}: search-gym report", style=_STYLE)


def _header(run: Run) -> str:
    facts = [f"{len(run.metrics):,} updates"]
    if run.train_seconds is not None:
        facts.append(f"{_duration(run.train_seconds)} of training")
    if run.seed is not None:
        facts.append(f"seed {run.seed}")
    algorithm = f" with {str(run.config['algorithm']).upper()}" if "algorithm" in run.config else ""
    return (
        f"<header><h1>{escape(run.name)}</h1><p>A language model trained{escape(algorithm)} to reason and to search "
        f"before it answers: {escape(', '.join(facts))}.</p></header>"
    )


def _evaluation(run: Run) -> str:
    cards = "".join(
        f'<div class="card"><span>{escape(kind)}</span><p>{_number(run.before.em.get(kind))}'
        f'<i aria-label="to">→</i><b>{_number(run.after.em.get(kind))}</b></p></div>'
        for kind in run.after.em
    )
    kinds = list(dict.fromkeys(kind for scores in (run.after, run.before, *run.baselines) for kind in scores.em))
    head = "".join(f'<th scope="col">{escape(kind)}</th>' for kind in kinds)
    # What training should beat stands above its result, the ceiling below.
    ceiling = [scores for scores in run.baselines if scores.name == "oracle"]
    others = [scores for scores in run.baselines if scores.name != "oracle"]
    rows = [_row(scores, kinds) for scores in (run.before, *others, run.after, *ceiling)]
    explained = "; small numbers and whiskers are 95 % intervals" if run.after.intervals else ""
    return (
        f'<section><h2>Exact match, before and after training</h2><div class="cards">{cards}</div>'
        f'<table><thead><tr><th scope="col">Policy</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="note">Held-out questions{explained}.</p></section>'
    )


def _row(scores: Scores, kinds: Sequence[str]) -> str:
    cells = "".join(_cell(scores.em.get(kind), scores.intervals.get(kind)) for kind in kinds)
    name = LABELS.get(scores.name, scores.name)
    return f'<tr class="{"after" if scores.name == "after" else ""}"><th scope="row">{escape(name)}</th>{cells}</tr>'


def _cell(em: float | None, interval: tuple[float, float] | None) -> str:
    if em is None:
        return "<td>–</td>"
    bounds = whisker = ""
    if interval is not None:
        low, high = interval
        bounds = f"<small>{low:.2f} to {high:.2f}</small>"
        whisker = f'<u style="left:{low:.1%};width:{high - low:.1%}"></u>'
    return f'<td>{_number(em)}{bounds}<div class="bar"><i style="width:{em:.1%}"></i>{whisker}</div></td>'


def _number(em: float | None) -> str:
    return "–" if em is None else f"{em:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _curves(run: Run) -> str:
    return (
        f"<section><h2>Learning curves</h2><figure>{charts.to_svg(run.metrics)}</figure>"
        '<p class="note">Thin: every update. Thick: centred moving average.</p></section>'
    )


def _alarms(alarms: Sequence[Alarm]) -> str:
    items = "".join(
        f"<li>update {alarm.update:,}: <b>{escape(alarm.name)}</b>: {escape(alarm.message)}</li>" for alarm in alarms
    )
    return f'<section><h2>Alarms</h2><ul class="alarms">{items}</ul></section>' if alarms else ""


def _transcripts(samples: Sequence[Sample]) -> str:
    by_question: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        by_question.setdefault((sample.kind, sample.question), []).append(sample)
    parts = []
    for (kind, question), episodes in by_question.items():
        golds = " or ".join(f"“{escape(answer)}”" for answer in episodes[0].answers)
        parts.append(
            f'<article><h3>{escape(question)}</h3><p class="note"><span class="kind">{escape(kind)}</span> '
            f"right answer: {golds}</p>{''.join(map(_episode, episodes))}</article>"
        )
    hint = "Hover over a sampled token for its numbers, or shade the tokens by one of them."
    return f'<section><h2>Transcripts</h2><p class="note">{hint}</p>{"".join(parts)}</section>' if parts else ""


def _episode(sample: Sample) -> str:
    answered = "no answer" if sample.answer is None else f"answered “{sample.answer}”"
    verdict = "✓ right" if sample.em == 1.0 else "✗ wrong"
    label = LABELS.get(sample.label, sample.label)
    return spans_to_html(
        sample.tokens, sample.spans, token_values=sample.token_values, heading=f"{label}: {answered}, {verdict}"
    )


def _config(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td><code>{escape(value)}</code></td></tr>"
        for key, value in _flat(config)
    )
    return f'<section class="config"><h2>Configuration</h2><table><tbody>{rows}</tbody></table></section>'


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


_STYLE = """
main { max-width: 1060px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -.01em; } h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; }
header p { margin: .2rem 0 0; color: var(--soft); font-size: 1.05rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin-bottom: 1.2rem; }
.card { flex: 1 1 11rem; padding: .7rem 1rem; background: var(--panel); border-radius: 8px; }
.card span { color: var(--soft); } .card p { margin: 0; font-size: 1.7rem; font-variant-numeric: tabular-nums; }
.card i { margin: 0 .5rem; color: var(--soft); font-style: normal; } .card b { color: var(--action); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem .45rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; } tbody th { width: 9rem; font-weight: 500; white-space: nowrap; }
.after th, .after td { font-weight: 700; } small { margin-left: .6rem; color: var(--soft); font-weight: 400; }
.bar { position: relative; height: 10px; margin-top: .25rem; background: var(--panel); }
.bar i { display: block; height: 100%; background: var(--soft); opacity: .5; }
.after .bar i { background: var(--action); opacity: .85; }
.bar u { position: absolute; inset-block: 1px; box-sizing: border-box; border: solid var(--ink); border-width: 0 1.5px;
  background: linear-gradient(var(--ink), var(--ink)) center / 100% 1.5px no-repeat; }
figure { margin: 0; } figure svg { display: block; width: 100%; height: auto; }
.note { margin: .5rem 0; color: var(--soft); font-size: .9rem; }
article { margin: 1.6rem 0 2.4rem; } article h3 { margin: 0; font-size: 1.1rem; }
.kind { padding: .05rem .5rem; border: 1px solid var(--line); border-radius: 1rem; }
.sg-transcript { margin: .9rem 0 1.4rem; } .sg-heading { font-size: .95rem; }
.config table { font-size: .85rem; } .config td, .config th { padding-block: .2rem; border: 0; }
.config code { overflow-wrap: anywhere; }
@media print {
  @page { margin: 14mm; } body { font-size: 12px; } main { padding: 0; } h2, h3 { break-after: avoid; }
  tr, .card, figure, .sg-span { break-inside: avoid; }
}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Make the report of the run folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.report", description="Make curves.png and report.html of a run."
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run, such as runs/demo")
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.run_dir))
    except SearchGymError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
