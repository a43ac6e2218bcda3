"""The report of `benchmarks.retrievers_in_env`: Markdown for docs/, and one HTML page for a browser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean, median
from typing import Any

from benchmarks.retriever_findings import LATE, LEARNED, REACHED, VERDICTS, WINDOW
from benchmarks.retriever_plots import PLOTS, Summary, draw, runs_of
from search_gym.render import html_page
from search_gym.viewer import charts

Table = tuple[Sequence[str], Sequence[Sequence[str]]]

KINDS = ("1-hop", "2-hop")


def page(summary: Summary) -> str:
    """The report as Markdown."""
    parts = [
        "<!-- made by `python -m benchmarks.retrievers --in-env`; do not edit -->\n# Retrievers in training",
        *(part if isinstance(part, str) else _to_markdown(part) for part in _parts(summary)),
    ]
    return "\n\n".join(parts) + "\n"


def to_html(summary: Summary) -> str:
    """The report as one page without outside resources."""
    figures = draw(summary)
    body = "<h1>Retrievers in training</h1>"
    for part in _parts(summary):
        if not isinstance(part, str):
            body += _table_to_html(part)
        elif found := re.fullmatch(r"(##+) (.*)", part):
            level = len(found[1])
            body += f"<h{level}>{escape(found[2])}</h{level}>"
        elif found := re.fullmatch(r"!\[(.*)\]\(images/(.*)\.png\)", part):
            body += f"<figure>{charts.svg_of(figures[found[2]], found[1])}</figure>"
        else:
            text = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(part, quote=False))
            body += f"<p>{text}</p>"
    return html_page(f"<main>{body}</main>", "Retrievers in training: search-gym report", style=_STYLE)


def _parts(summary: Summary) -> list[str | Table]:
    updates, rows, runs = summary["updates"], summary["rows"], summary["runs"]
    machine = f"{summary['machine']['cpus']} CPU cores ({summary['machine']['architecture']}), torch {summary['torch']}"
    seeds = sorted({run["seed"] for run in runs})
    described = ", ".join(f"`{name}` is `{text}`" for name, text in summary["retrievers"].items() if name != text)
    return [
        f"What does the retriever that an agent trains with do to it? The tiny agent is trained with PPO on TinyWiki, "
        f"{updates} updates of {summary['rollouts_per_update']} episodes, and nothing differs between the runs but the "
        f"retriever, the number k of documents per search, and the seed ({', '.join(map(str, seeds))}). The limits of "
        f"an episode are the same for every k and hold five documents a search."
        + (f" {described}." if described else ""),
        f"Made by `{summary['command']}` on {machine}, from {_count(runs, summary)}: "
        f"{_duration(sum(run['train_seconds'] for run in runs))} of training.",
        "## Findings",
        f"Each line is a finding of the paper as a difference between runs that are equal in everything else. A seed "
        f"gives one difference, its mean over all k or all retrievers where none is named; the interval is Student's "
        f'95 % interval over seeds. The verdict follows from it alone: "reproduces" when all of it has the paper\'s '
        f'sign, "contradicts" when all of it has the other one, else "undecided". A run that never reached a mean '
        f"exact match of {LEARNED:g} had nothing to lose: with such a run a line about stability is undecided, and "
        "with none but such runs every line. Of so many lines, one in twenty would be decided by chance alone; those "
        "without a k or a retriever say most. What is compared is what is learned in so many updates: what learns more "
        "slowly counts as worse, though it might catch up.",
        *_findings(summary["findings"]),
        "The paper's differences are in exact match on seven data sets, with a model of seven billion parameters: "
        "k = 1, 3, 5 give .375, .431, .400 (arXiv 2503.09516); training with random documents, BM25, E5 with HNSW, and "
        "exact E5 gives .241, .352, .379, .430 (arXiv 2505.15117); `dense − bm25` stands beside exact E5. The tiny "
        "agent copies words from short facts; a finding about it is one about how search is learned, not about which k "
        "or retriever suits a large model.",
        "## Learning curves",
        *_plot("retrievers_by_k"),
        f"Lines are means over seeds of the mean of the last {WINDOW} updates, bands reach from the lowest seed to the "
        "highest. A quarter of the training questions has one hop, so a policy that has learned to search once, and no "
        "more than that, stands at 0.25.",
        *_plot("retrievers_by_retriever"),
        "## Held-out exact match",
        f"Greedy answers to {summary['questions_per_kind']} questions of each kind about worlds that training never "
        "saw, with the retriever of the training and with BM25 at the same k: the first is what the agent and its "
        "retriever reach together, the second what the agent has learned. Intervals are 95 % bootstrap intervals over "
        'seeds and questions. "Allows" is what a program reaches that searches once a hop with the same retriever.',
        _em_table(rows),
        *_plot("retrievers_held_out"),
        "Both kinds count the same. A dot is a seed, a line joins the means, and a dashed line is what the retriever "
        "of the training allows.",
        "## Searches and tokens",
        "Per held-out episode with the retriever of the training: searches, tokens that the policy wrote, tokens that "
        "the searches brought. Then seconds of training per run, on a machine that did other work too.",
        _cost_table(rows, runs),
        "## Stability",
        f"Runs that learned (a mean exact match of {LEARNED:g} over {WINDOW} updates) and runs with an alarm of "
        f"collapse (`agents/health.py`); the largest fall of the mean of {WINDOW} updates below its best so far; the "
        f"standard deviation over the last {LATE} updates, beside the one that drawing episodes alone explains; the "
        f"area under the curve; runs whose mean of {WINDOW} updates reached {REACHED:g}, and their median update. "
        "Means over seeds.",
        _stability_table(rows, runs),
        "## Every run",
        "Held-out exact match with the retriever of the training, and with BM25.",
        _runs_table(runs),
    ]


def _plot(name: str) -> list[str]:
    return [f"![{PLOTS[name]}](images/{name}.png)"]


def _interval(found: Mapping[str, float | None], sign: str = "", digits: int = 2) -> str:
    mean, low, high = (
        # Zero is added because a small negative number is rounded to minus zero.
        None if (value := found[name]) is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"
        for name in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]" if low and high else f"{mean}"


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str | Table]:
    """For each finding a heading, how many of its lines have which verdict, and the lines."""
    parts: list[str | Table] = []
    head = ["difference", "metric", "measured", "paper", "seeds", "verdict"]
    for name in dict.fromkeys(found["finding"] for found in findings):
        chosen = [found for found in findings if found["finding"] == name]
        verdicts = [found["verdict"] for found in chosen]
        counts = ", ".join(f"{word} {verdicts.count(word)}" for word in VERDICTS)
        table = [
            [
                f"{found['one']} − {found['other']}",
                found["metric"],
                _interval(found["difference"], "+", 3 if found["metric"] == "largest fall" else 2),
                "" if found["paper"] is None else f"{found['paper']:+.3f}",
                str(len(found["by_seed"])),
                found["verdict"],
            ]
            for found in chosen
        ]
        parts += [f"### {name}", f"Of {len(chosen)} differences: {counts}.", (head, table)]
    return parts


def _em_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    head = [
        "retriever",
        "k",
        "seeds",
        *KINDS,
        *(f"{kind}, BM25" for kind in KINDS),
        *(f"{kind} allows" for kind in KINDS),
    ]
    return head, [
        [
            row["retriever"],
            str(row["top_k"]),
            str(len(row["seeds"])),
            *(_interval(row[where]["em"][kind]) for where in ("own", "common") for kind in KINDS),
            *(f"{row['scripted']['oracle'][kind]:.2f}" for kind in KINDS),
        ]
        for row in rows
    ]


def _cost_table(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Table:
    head = ["retriever", "k", "searches", "tokens written", "tokens found", "seconds", "CPU seconds"]
    cells = []
    for row in rows:
        own, chosen = row["own"], runs_of(runs, row)
        cpu = [run["train_cpu_seconds"] for run in chosen if run["train_cpu_seconds"] is not None]
        cells.append(
            [
                row["retriever"],
                str(row["top_k"]),
                _interval(own["searches"]),
                f"{own['sampled_tokens']['mean']:.1f}",
                f"{own['observation_tokens']['mean']:.1f}",
                f"{fmean(run['train_seconds'] for run in chosen):.0f}",
                f"{fmean(cpu):.0f}" if cpu else "",
            ]
        )
    return head, cells


def _stability_table(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Table:
    head = [
        "retriever",
        "k",
        "learned",
        "collapsed",
        "largest fall",
        "late std (drawing)",
        "area",
        f"reached {REACHED:g}",
    ]
    cells = []
    for row in rows:
        chosen = runs_of(runs, row)
        found = [run["stability"] for run in chosen]
        reached = [one["reached"] for one in found if one["reached"] is not None]
        mean = {
            name: fmean(one[name] for one in found) for name in ("largest_fall", "late_std", "sampling_std", "area")
        }
        cells.append(
            [
                row["retriever"],
                str(row["top_k"]),
                f"{sum(one['learned'] for one in found)} of {len(found)}",
                f"{sum(run['collapsed'] for run in chosen)} of {len(found)}",
                f"{mean['largest_fall']:.3f}",
                f"{mean['late_std']:.3f} ({mean['sampling_std']:.3f})",
                f"{mean['area']:.2f}",
                f"{len(reached)} of {len(found)}" + (f", {median(reached):.0f}" if reached else ""),
            ]
        )
    return head, cells


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    head = ["retriever", "k", "seed", *KINDS, *(f"{kind}, BM25" for kind in KINDS), "alarms"]
    return head, [
        [
            run["retriever"],
            str(run["top_k"]),
            str(run["seed"]),
            *(f"{run['em'][where][kind]:.2f}" for where in ("own", "common") for kind in KINDS),
            ", ".join(f"{alarm['name']} ({alarm['update']})" for alarm in run["alarms"]),
        ]
        for run in runs
    ]


def _count(runs: Sequence[Mapping[str, Any]], summary: Summary) -> str:
    more = "" if len(runs) == summary["planned"] else f", of {summary['planned']} that were planned"
    return f"{len(runs)} training runs{more}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def _is_number(text: str) -> bool:
    return bool(re.match(r"[+-]?\d", text))


def _to_markdown(table: Table) -> str:
    head, rows = table
    sides = ["---:" if all(_is_number(row[i]) or not row[i] for row in rows) else "---" for i in range(len(head))]
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(sides)}|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _table_to_html(table: Table) -> str:
    head, rows = table
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


_STYLE = """
main { max-width: 1100px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.25rem; } .table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
figure { margin: 1rem 0; } figure svg { display: block; width: 100%; height: auto; }
"""
