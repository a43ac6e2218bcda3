"""Panels of curves: as inline SVG that follows the page's colours, and as PNG and SVG files."""

from __future__ import annotations

import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from search_gym.plugins import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1d2430", "#59616e", "#d8dde5"
# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# A page gives these colours of its own to light and to dark; one that does not gets ours.
_VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"}
_VARIABLES |= {color: f"var(--series-{i}, {color})" for i, color in enumerate(COLORS)}
_STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "svg.fonttype": "none",
}

WIDE = 1_000
"""How many times larger than most a number has to be for a logarithmic scale."""

Series = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """A curve through ``x`` (n,) and ``y`` (n,), with an interval ``low`` to ``high`` (n,) where one is known."""

    label: str
    x: Series
    y: Series
    color: int = 0
    """Place in `COLORS`."""
    low: Series | None = None
    high: Series | None = None
    smoothed: bool = False
    """Draw the points thinly and a centred moving average over them."""
    steps: bool = False
    """Draw a step function, as a survival curve is."""
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One small chart: lines over the same axes."""

    title: str
    lines: Sequence[Line]
    limits: tuple[float | None, float | None] = (None, None)
    xlabel: str = "update"
    span: tuple[float, float] | None = None
    """Ends of the x-axis, by default those of the lines."""
    marks: Sequence[float] = ()
    """Where vertical lines stand."""
    legend: bool = True
    """Have a legend of its own, if there are several lines; without, the page or the file has one for all panels."""


def smooth(values: Series, half_width: int) -> Series:
    """The mean of ``values`` (n,) over a centred window of ``2 * half_width + 1``, cut off at both ends."""
    window = np.ones(2 * half_width + 1)
    middle = slice(half_width, half_width + len(values))
    return np.convolve(values, window)[middle] / np.convolve(np.ones_like(values), window)[middle]


def to_svg(panel: Panel, *, titled: bool = True) -> str:
    """One panel as an SVG element; without ``titled`` the page gives the title, and it is only read aloud.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """

    def draw() -> Figure:
        figure = require("matplotlib.figure", extra="view").Figure(figsize=(3.3, 2.25))
        axes = figure.add_subplot()
        _draw_panel(axes, panel, titled=titled)
        low, high = axes.get_ylim()
        widest = max((len(_tick(tick, None)) for tick in axes.get_yticks() if low <= tick <= high), default=0)
        left = 0.145 + 0.022 * max(0, widest - 5)
        figure.subplots_adjust(left=left, right=0.985, top=0.9 if titled else 0.97, bottom=0.19)
        return figure

    return svg_of(draw, panel.title)


def save(panels: Sequence[Panel], path: Path, *, columns: int = 3) -> None:
    """Write the panels side by side into ``path`` with the suffixes .png and .svg.

    Raises:
        MissingDependencyError: matplotlib is not installed. ValueError: no panels.
    """
    if not panels:
        raise ValueError("expected one panel or more, got none; do: leave the file out")
    save_png(lambda: _draw(panels, columns), path.with_suffix(".png"))
    svg = _svg(lambda: _draw(panels, columns), transparent=False)
    path.with_suffix(".svg").write_text(f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}', encoding="utf-8")


def save_png(draw: Callable[[], Figure], path: Path, *, dpi: int = 150) -> None:
    """Write the figure that ``draw`` makes, in the style of all charts, into a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="view")
    with matplotlib.rc_context(_STYLE):
        draw().savefig(path, format="png", dpi=dpi, facecolor="white")


def svg_of(draw: Callable[[], Figure], label: str) -> str:
    """The figure that ``draw`` makes as an SVG element that follows the page's colours; ``label`` is read aloud.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    svg = _svg(draw, transparent=True)
    # Several figures share a page: what nothing refers to needs no name, and the rest gets names of its own.
    used = set(re.findall(r"#([\w-]+)", svg))
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r' id="([\w-]+)"', lambda m: f' id="{m[1]}-{own}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([\w-]+)', rf"\g<1>\g<2>-{own}", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _svg(draw: Callable[[], Figure], *, transparent: bool) -> str:
    matplotlib = require("matplotlib", extra="view")
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": "curves"}):
        draw().savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    svg = buffer.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _draw(panels: Sequence[Panel], columns: int) -> Figure:
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure_module = require("matplotlib.figure", extra="view")
    figure = figure_module.Figure(figsize=(3.7 * columns, 2.65 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    shared: dict[str, Any] = {}
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_panel(axes, panel)
        if not panel.legend:
            handles, labels = axes.get_legend_handles_labels()
            shared = dict(zip(labels, handles, strict=True)) | shared
    if len(shared) > 1:
        figure.legend(shared.values(), shared.keys(), loc="outside upper left", ncols=len(shared), frameon=False)
    return figure


def _draw_panel(axes: Axes, panel: Panel, *, titled: bool = True) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    for mark in panel.marks:
        axes.axvline(mark, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
    if titled:
        axes.set_title(textwrap.fill(_plain(panel.title), 38), loc="left", fontsize=10.5)
    axes.set_xlabel(panel.xlabel)
    axes.margins(x=0.02)
    if panel.span is not None:
        axes.update_datalim([(x, 0.0) for x in panel.span], updatey=False)
    axes.locator_params(axis="y", nbins=5)
    low, high = panel.limits
    if high is None:
        _widen(axes, panel)
    axes.set_ylim(low, high if high is None else high + 0.02 * (high - (low or 0.0)))
    axes.grid(axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.yaxis.set_major_formatter(_tick)
    if panel.legend and len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=9, handlelength=1.2)


def _widen(axes: Axes, panel: Panel) -> None:
    """Let the y-axis be logarithmic beyond what is usual, if some numbers are so large that others would vanish."""
    sizes = np.abs(np.concatenate([line.y for line in panel.lines]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes) or sizes.max() < WIDE * np.median(sizes):
        return
    first, last = math.ceil(math.log10(np.median(sizes))), math.floor(math.log10(sizes.max()))
    powers = [10.0**power for power in range(first, last + 1, math.ceil((last - first) / 3))]
    has_negative = any((line.y < 0).any() for line in panel.lines)
    axes.set_yscale("symlog", linthresh=powers[0])
    ticks = powers[1:]  # the first one would touch 0
    axes.set_yticks([*(-tick for tick in reversed(ticks) if has_negative), 0.0, *ticks])
    axes.minorticks_off()
    axes.text(0.02, 0.98, "log scale", transform=axes.transAxes, va="top", color=SOFT, fontsize=8.5)


def _draw_line(axes: Axes, line: Line) -> None:
    color = COLORS[line.color % len(COLORS)]
    style = (0, (3, 1.5)) if line.dashed else "-"
    step = "post" if line.steps else None
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, step=step, color=color, alpha=0.18, linewidth=0)
    label = _plain(line.label)
    if line.smoothed:
        axes.plot(line.x, line.y, color=color, linewidth=0.8, alpha=0.4)
        axes.plot(line.x, smooth(line.y, len(line.y) // 40), color=color, linewidth=1.8, label=label)
    else:
        drawstyle = "steps-post" if line.steps else "default"
        axes.plot(line.x, line.y, color=color, linewidth=1.8, linestyle=style, drawstyle=drawstyle, label=label)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no formula, and XML no forbidden character."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "\ufffd", text).replace("$", r"\$")


def _tick(value: float, _: object) -> str:
    """A number that fits beside the axis."""
    if abs(value) >= 1_000_000 or 0 < abs(value) < 0.01:
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(exponent)}"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.4g}k"
    return f"{value:,.6g}"
