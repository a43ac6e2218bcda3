"""Which cells of a study may be compared: those that differ in one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.collapse.factors import PRESET_LEVELS
from benchmarks.collapse.records import Level

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """Two cells that differ in one thing."""

    one: str
    other: str


@dataclass(frozen=True)
class Contrast:
    """A change: ``level`` of ``factor`` in the place of ``reference``, for runs of ``algorithm``."""

    family: str
    """Those that are adjusted together for their number."""
    algorithm: str
    factor: str
    level: str
    reference: str
    settings: tuple[Setting, ...]


def difference(one: Mapping[str, Level], other: Mapping[str, Level]) -> list[str]:
    """The factors in which two cells differ; the weight of a KL term that one of them does not have is none."""
    names = [name for name in one if name in other and one[name] != other[name]]
    if "none" in (one.get("kl"), other.get("kl")):
        names = [name for name in names if name != "kl_coef"]
    return names


def contrasts(study: Mapping[str, Any]) -> list[Contrast]:
    """Every cell against the centre of its algorithm from which it differs in one factor; DAPO's against GRPO's; and
    where two algorithms have the same change, also both together. Cells of a fraction alone are not among them."""
    cells = [cell for cell in study["cells"] if _is_single(cell)]
    found: list[Contrast] = []
    for cell in cells:
        algorithm = cell["algorithm"]
        center = _center(study, "grpo" if algorithm == "dapo" else algorithm)
        if center is None or center is cell:
            continue
        names = difference(cell["levels"], center["levels"])
        setting = Setting(cell["cell"], center["cell"])
        if algorithm == "dapo" and not names:
            rounds = cell["levels"].get("max_rounds", 1)
            level = f"DAPO, {rounds} round{'' if rounds == 1 else 's'}"
            found.append(Contrast(cell["group"], "grpo", "filtering", level, "GRPO", (setting,)))
        elif algorithm != "dapo" and len(names) == 1:
            level, reference = (_shown(some["levels"], names[0]) for some in (cell, center))
            found.append(Contrast(cell["group"], algorithm, names[0], level, reference, (setting,)))
    pooled: dict[tuple[str, str, str, str], list[Contrast]] = {}
    for contrast in found:
        key = (contrast.family, contrast.factor, contrast.level, contrast.reference)
        pooled.setdefault(key, []).append(contrast)
    for (family, factor, level, reference), several in pooled.items():
        if len(several) > 1:
            settings = tuple(setting for contrast in several for setting in contrast.settings)
            found.append(Contrast(family, "both", factor, level, reference, settings))
    return found


def algorithm_settings(study: Mapping[str, Any], one: str, other: str, **levels: Level) -> tuple[Setting, ...]:
    """The pairs of cells of two algorithms that agree in every factor that both have, and have ``levels``.

    Under a preset, what the preset decides may differ, since that is what a preset is. Cells of a fraction alone are
    not among them.
    """
    found = []
    cells = [cell for cell in study["cells"] if _is_single(cell)]
    for cell in cells:
        for match in cells:
            if (cell["algorithm"], match["algorithm"]) != (one, other):
                continue
            preset = cell["levels"].get("preset", "matched")
            decided = {name for by in PRESET_LEVELS.get(str(preset), {}).values() for name in by}
            if set(difference(cell["levels"], match["levels"])) <= decided and all(
                side["levels"].get(name) == level for side in (cell, match) for name, level in levels.items()
            ):
                found.append(Setting(cell["cell"], match["cell"]))
    return tuple(found)


def level_settings(
    study: Mapping[str, Any], algorithm: str, factor: str, level: Level, reference: Level
) -> tuple[Setting, ...]:
    """The pairs of cells of ``algorithm`` that have these two levels of ``factor`` and agree in everything else."""
    cells = [cell for cell in study["cells"] if cell["algorithm"] == algorithm and _is_single(cell)]
    return tuple(
        Setting(cell["cell"], match["cell"])
        for cell in cells
        for match in cells
        if cell["levels"].get(factor) == level
        and match["levels"].get(factor) == reference
        and difference(cell["levels"], match["levels"]) == [factor]
    )


def _is_single(cell: Cell) -> bool:
    return cell.get("groups", [cell["group"]]) != ["fraction"]


def _center(study: Mapping[str, Any], algorithm: str) -> Cell | None:
    """The cell of ``algorithm`` that is at the centre of every factor."""
    centers = {name: factor["center"] for name, factor in study["factors"].items()}
    for cell in study["cells"]:
        if cell["algorithm"] == algorithm and all(centers[name] == level for name, level in cell["levels"].items()):
            return cell
    return None


def _shown(levels: Mapping[str, Level], factor: str) -> str:
    level = levels[factor]
    if isinstance(level, bool):
        return "on" if level else "off"
    text = f"{level:g}" if isinstance(level, float) else str(level)
    return f"{text}, weight {levels['kl_coef']:g}" if factor == "kl" and level != "none" else text
