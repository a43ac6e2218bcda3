"""The report of `benchmarks.retrievers_in_env`: Markdown for docs/, one HTML page for a browser, and their plots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from agents import charts
from benchmarks.retriever_findings import LATE, LEARNED, REACHED, VERDICTS, WINDOW, trailing_mean
from search_gym.plugins import require
from search_gym.render import html_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]

PLOTS = {
    "retrievers_by_k": "Exact match of sampled training episodes, a panel for each k",
    "retrievers_by_retriever": "The same curves, a panel for each retriever",
    "retrievers_quality": "Exact match after training against what the retriever allows",
}
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


def draw(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """For the name of each plot what makes it."""
    names = list(summary["retrievers"])
    top_ks = sorted({run["top_k"] for run in summary["runs"]})
    by_k = {f"k = {k}": {name: _curves(summary, name, k) for name in names} for k in top_ks}
    by_name = {name: {f"k = {k}": _curves(summary, name, k) for k in top_ks} for name in names}
    return {
        "retrievers_by_k": partial(_draw_curves, by_k),
        "retrievers_by_retriever": partial(_draw_curves, by_name),
        "retrievers_quality": partial(_draw_quality, summary["rows"]),
    }


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
        f"Made by `{summary['command']}` on {machine}, from {len(runs)} training runs: "
        f"{_hours(sum(run['train_seconds'] for run in runs))} of training.",
        "## Findings",
        f"Each line is a finding of the paper as a difference between runs that are equal in everything else. A seed "
        f"gives one difference, its mean over all k or all retrievers where none is named; the interval is Student's "
        f'95 % interval over seeds. The verdict follows from it alone: "reproduces" when all of it has the paper\'s '
        f'sign, "contradicts" when all of it has the other one, else "undecided"; about stability also "undecided" '
        f"when a run never reached a mean exact match of {LEARNED:g}, because it had nothing to lose.",
        *_findings(summary["findings"]),
        "The paper's differences are in exact match on seven data sets, with a model of seven billion parameters: "
        "k = 1, 3, 5 give .375, .431, .400 (arXiv 2503.09516); training with random documents, BM25, E5 with HNSW, and "
        "exact E5 gives .241, .352, .379, .430 (arXiv 2505.15117); `dense − bm25` stands beside exact E5. The tiny agent copies words from short facts; a finding "
        "about it is one about how search is learned, not about which k or retriever suits a large model.",
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
        *_plot("retrievers_quality"),
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
        None if found[name] is None else f"{found[name]:{sign}.{digits}f}" for name in ("mean", "low", "high")
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
        own, chosen = row["own"], _runs_of(runs, row)
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
        chosen = _runs_of(runs, row)
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


def _runs_of(runs: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for run in runs if (run["retriever"], run["top_k"]) == (row["retriever"], row["top_k"])]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours"


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


def _curves(summary: Summary, name: str, top_k: int) -> list[Sequence[float]]:
    return [run["curves"]["em"] for run in summary["runs"] if (run["retriever"], run["top_k"]) == (name, top_k)]


def _draw_curves(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    figure = require("matplotlib.figure", extra="agents").Figure(
        figsize=(max(2.6 * len(panels), 5.2), 3.0), layout="constrained"
    )
    axes_row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    lines = {}
    for axes, (title, curves) in zip(axes_row, panels.items(), strict=True):
        for number, (label, values) in enumerate(curves.items()):
            if values:
                smooth = np.array([trailing_mean(curve, WINDOW) for curve in values])
                updates = np.arange(1, smooth.shape[1] + 1)
                color = charts.COLORS[number % len(charts.COLORS)]
                axes.fill_between(updates, smooth.min(0), smooth.max(0), color=color, alpha=0.18, linewidth=0)
                (lines[label],) = axes.plot(updates, smooth.mean(0), color=color, linewidth=1.8)
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set_xlabel("update")
        axes.set_ylim(0, 1.02)
        _tidy(axes)
    axes_row[0].set_ylabel("exact match")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _draw_quality(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure = require("matplotlib.figure", extra="agents").Figure(figsize=(7.8, 3.6), layout="constrained")
    names, top_ks = (list(dict.fromkeys(row[key] for row in rows)) for key in ("retriever", "top_k"))
    lines = {}
    for axes, where, title in zip(
        figure.subplots(1, 2, sharey=True), ("own", "common"), ("Its own retriever", "BM25"), strict=True
    ):
        for row in rows:
            number = names.index(row["retriever"])
            allows = fmean(row["scripted"]["oracle"].values()) + 0.012 * (number - len(names) // 2)
            em = [row[where]["em"][kind]["mean"] for kind in KINDS]
            (lines[row["retriever"]],) = axes.plot(
                allows + 0.03 * (top_ks.index(row["top_k"]) - len(top_ks) // 2),
                fmean(em),
                marker=f"${row['top_k']}$",
                markersize=9,
                linestyle="none",
                color=charts.COLORS[number % len(charts.COLORS)],
            )
        axes.plot([0, 1], [0, 1], color=charts.LINE, linewidth=1, zorder=0)
        axes.set_title(f"Evaluated with: {title}", loc="left", fontsize=10.5)
        axes.set_xlabel("exact match that the training retriever allows")
        axes.set_xlim(-0.08, 1.1)
        axes.set_ylim(-0.05, 1.05)
        _tidy(axes)
        axes.set_ylabel("exact match" if where == "own" else "")
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False, handletextpad=0.2
    )
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
