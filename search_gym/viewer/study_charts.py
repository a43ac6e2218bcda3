"""The charts of a study: survival and learning curves by group of cells, and what each metric did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.render import harmless
from search_gym.viewer import charts
from search_gym.viewer.charts import Line, Panel
from search_gym.viewer.page import text
from search_gym.viewer.study_folder import FEWEST_RUNS, Study, Table, mean_curve

COLOR_OF = {"ppo": 0, "grpo": 1, "dapo": 2, "gspo": 3, "dr_grpo": 4, "rloo": 5}
SURVIVAL, LEARNING = "Share of runs that have not collapsed", "Exact match while training"


@dataclass(frozen=True)
class Figure:
    """Panels that belong together, with a caption in trusted markup for each."""

    name: str
    heading: str
    panels: Sequence[Panel]
    captions: Sequence[str] = ()

    def svgs(self) -> list[tuple[str, str, str]]:
        """Title, SVG element and caption of each panel."""
        captions = self.captions or [""] * len(self.panels)
        return [
            (panel.title, charts.to_svg(panel, titled=False), caption)
            for panel, caption in zip(self.panels, captions, strict=True)
        ]


@dataclass(frozen=True)
class Figures:
    """Every figure of a study: those of each group, and the indicators with the keys of their lines."""

    groups: Mapping[str, Sequence[Figure]]
    indicators: Figure | None
    indicator_keys: Sequence[tuple[str, int, bool]]


def figures_of(study: Study, table: Table | None) -> Figures:
    """The figures that can be drawn from what is there."""
    groups = {group["name"]: _group(study, group) for group in study.plan.get("groups", ())} if study.analysis else {}
    indicators, keys = _indicators(study, table) if table is not None else (None, [])
    return Figures(groups, indicators, keys)


def save_all(figures: Figures, folder: Path) -> None:
    """Write every figure into ``folder`` as PNG and SVG."""
    found = [figure for group in figures.groups.values() for figure in group if figure.panels]
    if figures.indicators is not None:
        found.append(figures.indicators)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
    for figure in found:
        charts.save(figure.panels, folder / figure.name, columns=min(4, max(2, len(figure.panels))))


def _group(study: Study, group: Mapping[str, Any]) -> list[Figure]:
    name = group["name"]
    levels = [level for level in study.analysis.get("levels", ()) if level["group"] == name]
    if group["design"] == "fraction":
        return [Figure(f"survival-{name}", SURVIVAL, _by_factor(study, levels))]
    cells = [cell for cell in study.analysis.get("cells", ()) if name in cell["groups"]]
    by_setting: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_setting.setdefault(_setting(cell), []).append(cell)
    by_setting = dict(sorted(by_setting.items(), key=_by_level([*by_setting])))
    titles = {setting: _title(found) for setting, found in by_setting.items()}
    together = [level for level in levels if level["factor"] == "algorithm"]
    span = _span(study)
    survival = [_survival("All together", together, [level["level"] for level in together], span)] if together else []
    survival += [
        _survival(titles[setting], found, [cell["algorithm"] for cell in found], span)
        for setting, found in by_setting.items()
    ]
    learning = [
        Panel(titles[setting], [_learning(cell) for cell in found], (0.0, 1.0), span=span, legend=False)
        for setting, found in by_setting.items()
    ]
    return [Figure(f"survival-{name}", SURVIVAL, survival), Figure(f"learning-{name}", LEARNING, learning)]


def _setting(cell: Mapping[str, Any]) -> str:
    """A cell's label without its algorithm."""
    return str(cell["label"]).partition(", ")[2] or str(cell["label"])


def _by_level(settings: Sequence[str]) -> Callable[[tuple[str, Any]], tuple[int, float]]:
    """A key that keeps the order of factors and puts the levels of each in the order of their numbers."""
    firsts: dict[str, int] = {}

    def key(item: tuple[str, Any]) -> tuple[int, float]:
        words, _, level = item[0].rpartition(" ")
        try:
            number = float(level)
        except ValueError:
            words, number = item[0], 0.0
        return firsts[words] if words in firsts else len(settings), number

    for place, setting in enumerate(settings):
        firsts.setdefault(setting.rpartition(" ")[0], place)
        firsts.setdefault(setting, place)
    return key


def _title(cells: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({cell["n"] for cell in cells})
    runs = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return _sentence(f"{_setting(cells[0])} (n = {runs})")


def _span(study: Study) -> tuple[float, float] | None:
    """All updates of a run: where every run has collapsed, a survival curve ends before, and its axis should not."""
    updates = study.plan.get("budget", {}).get("updates")
    return None if updates is None else (0.0, float(updates))


def _survival(
    title: str, rows: Sequence[Mapping[str, Any]], algorithms: Sequence[str], span: tuple[float, float] | None
) -> Panel:
    lines = [
        _survival_line(row, name.upper(), COLOR_OF.get(name, 3)) for row, name in zip(rows, algorithms, strict=True)
    ]
    return Panel(title, lines, (0.0, 1.0), span=span, legend=False)


def _survival_line(row: Mapping[str, Any], label: str, color: int) -> Line:
    curve = row["survival"]
    x, y, low, high = (_array(curve[name]) for name in ("update", "survival", "low", "high"))
    # Lines that lie on each other are told apart by their dashes.
    return Line(harmless(label), x, y, color, low, high, steps=True, dashed=bool(color % 2))


def _learning(cell: Mapping[str, Any]) -> Line:
    curve = cell["curve"]
    x, y, low, high = (_array(curve[name]) for name in ("update", "mean", "low", "high"))
    several = cell["n"] >= FEWEST_RUNS
    color = COLOR_OF.get(cell["algorithm"], 3)
    return Line(str(cell["algorithm"]).upper(), x, y, color, low if several else None, high if several else None)


def _by_factor(study: Study, levels: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """One panel for each factor of which two levels have been run, with a line for each of them."""
    by_factor: dict[str, list[Mapping[str, Any]]] = {}
    for level in levels:
        by_factor.setdefault(level["factor"], []).append(level)
    panels = []
    for factor, rows in by_factor.items():
        if len(rows) < 2:
            continue
        label = study.plan["factors"].get(factor, {}).get("label", factor)
        lines = [_survival_line(row, f"{_level(row['level'])} ({row['n']} runs)", i) for i, row in enumerate(rows)]
        panels.append(Panel(_sentence(harmless(label)), lines, (0.0, 1.0), span=_span(study)))
    return panels


def _level(value: object) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _array(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _indicators(study: Study, table: Table | None) -> tuple[Figure | None, list[tuple[str, int, bool]]]:
    """A panel for each indicator: the mean over runs of each algorithm, of those that collapsed by itself."""
    assert table is not None
    algorithm_of = {cell["cell"]: cell["algorithm"] for cell in study.plan["cells"]}
    judged = {row["metric"]: row for row in study.analysis.get("indicators", ()) if row.get("runs", "all") == "all"}
    outcomes = study.outcomes
    panels, captions = [], []
    keys: dict[tuple[str, bool], tuple[str, int, bool]] = {}
    for metric, row in judged.items():
        by_line: dict[tuple[str, bool], list[Any]] = {}
        for (cell, seed), updates, values in table.curves(metric):
            collapsed = outcomes.get((cell, seed)) == "collapsed"
            by_line.setdefault((algorithm_of.get(cell, ""), collapsed), []).append((updates, values))
        lines = []
        for (algorithm, collapsed), curves in sorted(by_line.items(), key=lambda item: _in_order(item[0])):
            if len(curves) < FEWEST_RUNS:
                continue
            x, y, low, high = mean_curve(curves)
            color = COLOR_OF.get(algorithm, 3)
            label = f"{algorithm.upper()}, {'collapsed' if collapsed else 'did not collapse'}"
            lines.append(Line(label, x, y, color, low, high, dashed=collapsed))
            keys.setdefault((algorithm, collapsed), (label, color, collapsed))
        if lines:
            panels.append(Panel(_sentence(row["label"]), lines, legend=False))
            captions.append(_worth(row))
    figure = Figure("indicators", "Indicators", panels, captions) if panels else None
    return figure, [keys[key] for key in sorted(keys, key=_in_order)]


def _in_order(key: tuple[str, bool]) -> tuple[int, str, bool]:
    """Lines of an algorithm stand together, and algorithms in the order of their colours."""
    algorithm, collapsed = key
    return COLOR_OF.get(algorithm, len(COLOR_OF)), algorithm, collapsed


def _sentence(label: str) -> str:
    return label[:1].upper() + label[1:]


def _worth(row: Mapping[str, Any]) -> str:
    """What an indicator is worth as a warning, in words; nothing where there were too few runs to judge it."""
    if not row.get("rules"):
        return ""
    detection, alarms, lead = row["detection"]["estimate"], row["false_alarms"]["estimate"], row["lead"]["estimate"]
    warns = f", {lead:g} updates before (median)" if lead is not None else ""
    return text(
        f"detects {_percent(detection)} of {row['collapsed']} collapses{warns}; false alarms in {_percent(alarms)} of "
        f"{row['kept']} runs"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"
