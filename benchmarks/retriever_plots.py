"""The plots of `benchmarks.retrievers_in_env`: learning curves, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.retriever_findings import WINDOW, mean_em, trailing_mean
from search_gym.plugins import require
from search_gym.viewer import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Summary = Mapping[str, Any]
PANELS_A_ROW = 3

PLOTS = {
    "retrievers_by_k": "Exact match of sampled training episodes, a panel for each k",
    "retrievers_by_retriever": "The same curves, a panel for each retriever",
    "retrievers_held_out": "Held-out exact match after training, and what the retriever allows",
}


def draw(summary: Summary) -> dict[str, Callable[[], Figure]]:
    """For the name of each plot what makes it."""
    names = list(summary["retrievers"])
    top_ks = sorted({run["top_k"] for run in summary["runs"]})
    by_k = {f"k = {k}": {name: _curves(summary, name, k) for name in names} for k in top_ks}
    by_name = {name: {f"k = {k}": _curves(summary, name, k) for k in top_ks} for name in names}
    return {
        "retrievers_by_k": partial(_draw_curves, by_k),
        "retrievers_by_retriever": partial(_draw_curves, by_name),
        "retrievers_held_out": partial(_draw_held_out, summary["rows"], summary["runs"]),
    }


def runs_of(runs: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The runs with the retriever and top_k of ``row``."""
    return [run for run in runs if (run["retriever"], run["top_k"]) == (row["retriever"], row["top_k"])]


def _curves(summary: Summary, name: str, top_k: int) -> list[Sequence[float]]:
    return [run["curves"]["em"] for run in summary["runs"] if (run["retriever"], run["top_k"]) == (name, top_k)]


def _draw_curves(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    columns = min(len(panels), PANELS_A_ROW)
    rows = -(-len(panels) // columns)
    figure = require("matplotlib.figure", extra="agents").Figure(
        figsize=(max(2.6 * columns, 5.2), 0.6 + 2.4 * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[len(panels) :]:
        unused.remove()
    axes_row = list(grid.flat[: len(panels)])
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
        axes.set_ylim(0, 1.02)
        _tidy(axes)
    for axes in axes_row[::columns]:
        axes.set_ylabel("exact match")
    for axes in axes_row[-columns:]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("update")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _draw_held_out(rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> Figure:
    figure = require("matplotlib.figure", extra="agents").Figure(figsize=(7.8, 3.6), layout="constrained")
    names, top_ks = (list(dict.fromkeys(row[key] for row in rows)) for key in ("retriever", "top_k"))
    lines = {}
    for axes, where, title in zip(
        figure.subplots(1, 2, sharey=True), ("own", "common"), ("its own retriever", "BM25"), strict=True
    ):
        for number, name in enumerate(names):
            chosen = [row for row in rows if row["retriever"] == name]
            color = charts.COLORS[number % len(charts.COLORS)]
            # Beside each other, because several lie at the same height.
            places = [top_ks.index(row["top_k"]) + 0.06 * (number - (len(names) - 1) / 2) for row in chosen]
            em = [[mean_em(run, where) for run in runs_of(runs, row)] for row in chosen]
            for place, values in zip(places, em, strict=True):
                axes.plot([place] * len(values), values, "o", color=color, markersize=4, alpha=0.55, markeredgewidth=0)
            (lines[name],) = axes.plot(places, [fmean(values) for values in em], color=color, linewidth=1.8)
            if where == "own":
                allows = [fmean(row["scripted"]["oracle"].values()) for row in chosen]
                axes.plot(places, allows, color=color, linewidth=1, linestyle="--", alpha=0.7)
        axes.set_title(f"Evaluated with {title}", loc="left", fontsize=10.5)
        axes.set_xticks(range(len(top_ks)), [f"k = {k}" for k in top_ks])
        axes.set_ylim(-0.02, 1.04)
        _tidy(axes)
        axes.set_ylabel("exact match" if where == "own" else "")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), frameon=False)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
