"""Learning curves as a PNG file and as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from search_gym.errors import SearchGymError
from search_gym.plugins import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, float]]

INK, SOFT, LINE = "#1d2430", "#59616e", "#d8dde5"
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
# Okabe and Ito's colours, which stay apart for colour-blind readers, on white and on dark pages.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "svg.fonttype": "none",
    "svg.hashsalt": "curves",
}

# Title, y-axis limits, and the metrics with their labels; "rollout/em/" stands for every key that begins so.
_PANELS: tuple[tuple[str, tuple[float | None, float | None], dict[str, str]], ...] = (
    ("Exact match of sampled episodes", (0.0, 1.0), {"rollout/em/": "", "rollout/em": "all"}),
    ("Searches per episode", (0.0, None), {"rollout/searches": ""}),
    ("Share of valid turns", (0.0, 1.0), {"rollout/valid_turns": ""}),
    ("Entropy per token, nats", (0.0, None), {"loss/entropy": ""}),
    ("KL per token, nats", (0.0, None), {"loss/kl": "to the base model", "loss/approx_kl": "old policy to new"}),
    ("Tokens per second", (0.0, None), {"time/tokens_per_second": ""}),
)


def smooth(values: npt.NDArray[np.float64], half_width: int) -> npt.NDArray[np.float64]:
    """The mean of ``values`` (n,) over a centred window of ``2 * half_width + 1``, cut off at both ends."""
    window = np.ones(2 * half_width + 1)
    middle = slice(half_width, half_width + len(values))
    return np.convolve(values, window)[middle] / np.convolve(np.ones_like(values), window)[middle]


def write_png(metrics: Metrics, path: Path) -> None:
    """Draw the curves of ``metrics`` into a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed. SearchGymError: no known metric has two finite values.
    """
    save_png(lambda: _draw(metrics), path)


def save_png(draw: Callable[[], Figure], path: Path, *, dpi: int = 150) -> None:
    """Write the figure that ``draw`` makes, in the style of all charts, into a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="agents")
    with matplotlib.rc_context(_STYLE):
        draw().savefig(path, format="png", dpi=dpi, facecolor="white")


def to_svg(metrics: Metrics) -> str:
    """The curves of ``metrics`` as an SVG element whose text and axes take their colours from the page.

    Raises:
        MissingDependencyError: matplotlib is not installed. SearchGymError: no known metric has two finite values.
    """
    return svg_of(lambda: _draw(metrics), "Learning curves")


def svg_of(draw: Callable[[], Figure], label: str) -> str:
    """The figure that ``draw`` makes as an SVG element that follows the page's colours; ``label`` is read aloud.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="agents")
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        draw().savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _draw(metrics: Metrics) -> Figure:
    figure_module = require("matplotlib.figure", extra="agents")
    panels = []
    for title, limits, wanted in _PANELS:
        lines = {label: line for label, line in _lines(metrics, wanted).items() if len(line[0]) > 1}
        if lines:
            panels.append((title, limits, lines))
    if not panels:
        raise SearchGymError("expected two updates or more with finite metrics, got none; do: train for longer")
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = figure_module.Figure(figsize=(3.7 * columns, 2.65 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    for index, (title, limits, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, title, limits, lines)
        if index + columns >= len(panels):
            axes.set_xlabel("update")
    return figure


def _lines(
    metrics: Metrics, wanted: Mapping[str, str]
) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Updates and values of each wanted metric where it is finite, by label."""
    lines = {}
    for key, label in wanted.items():
        names = sorted({name for row in metrics for name in row if name.startswith(key)}) if key[-1] == "/" else [key]
        for name in names:
            pairs = [(row.get("update", i), row[name]) for i, row in enumerate(metrics) if name in row]
            points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
            points = points[np.isfinite(points).all(axis=1)]
            lines[label or name.rpartition("/")[2]] = (points[:, 0], points[:, 1])
    return lines


def _draw_panel(
    axes: Axes,
    title: str,
    limits: tuple[float | None, float | None],
    lines: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
) -> None:
    for (label, (updates, values)), color in zip(lines.items(), COLORS * len(lines), strict=False):
        axes.plot(updates, values, color=color, linewidth=0.8, alpha=0.4)
        averages = smooth(values, len(values) // 40)
        axes.plot(updates, averages, color=color, linewidth=1.8, label=label.replace("$", r"\$"))
    axes.set_title(title, loc="left", fontsize=10.5)
    low, high = limits
    axes.set_ylim(low, high if high is None else high * 1.02)
    axes.margins(x=0.02)
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, handlelength=1.2)
