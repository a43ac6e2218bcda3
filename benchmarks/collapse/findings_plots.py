"""The plots of docs/findings.md: learning curves and survival of PPO and GRPO, a panel for each learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.collapse.findings_answer import rate_cells
from benchmarks.collapse.findings_text import Row
from search_gym.plugins import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"ppo": "#0072b2", "grpo": "#d55e00"}
"""Of each algorithm; both are told apart by people who see few colours."""


def draw_curves(found: Row) -> Figure | None:
    """Smoothed exact match by update; None where no learning rate has runs."""
    return _panels(found, "curve", "exact match")


def draw_survival(found: Row) -> Figure | None:
    """Kaplan-Meier curves; None where no learning rate has runs."""
    return _panels(found, "survival", "not collapsed")


def _panels(found: Row, part: str, what: str) -> Figure | None:
    by_rate: dict[float, dict[str, Row]] = {}
    for algorithm in COLORS:
        for cell in rate_cells(found, algorithm):
            by_rate.setdefault(cell["levels"]["learning_rate"], {})[algorithm] = cell
    if not by_rate:
        return None
    figure = require("matplotlib.figure", extra="agents").Figure(
        figsize=(max(5.2, 2.5 * len(by_rate)), 3.0), layout="constrained"
    )
    lines = {}
    axes_row = figure.subplots(1, len(by_rate), sharey=True, squeeze=False)[0]
    for axes, (rate, cells) in zip(axes_row, sorted(by_rate.items()), strict=True):
        for algorithm, cell in cells.items():
            color = COLORS[algorithm]
            curve = cell[part]
            style = {"step": "post"} if part == "survival" else {}
            low, high = ([float("nan") if x is None else x for x in curve[side]] for side in ("low", "high"))
            axes.fill_between(curve["update"], low, high, color=color, alpha=0.18, linewidth=0, **style)
            draw = axes.step if part == "survival" else axes.plot
            shape = {"where": "post"} if part == "survival" else {}
            shape["linestyle"] = "--" if algorithm == "grpo" else "-"  # seen where the lines lie on each other
            (lines[algorithm],) = draw(
                curve["update"],
                curve["survival" if part == "survival" else "mean"],
                color=color,
                linewidth=1.8,
                **shape,
            )
        counts = ", ".join(f"{algorithm.upper()} {cell['n']}" for algorithm, cell in cells.items())
        axes.set_title(f"learning rate {rate:g}\n{counts} runs", loc="left", fontsize=9.5)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("update")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    axes_row[0].set_ylabel(what)
    figure.legend(lines.values(), [name.upper() for name in lines], loc="outside lower center", ncols=2, frameon=False)
    return figure
