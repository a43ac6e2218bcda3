"""A study's file, and the cells that the file's groups come to."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from agents import algorithms
from agents.config import pick
from benchmarks.collapse.designs import Chosen, crossing, fraction, one_at_a_time
from benchmarks.collapse.factors import CATALOGUE, Level, Levels, Size, check_level, complete, options_of
from benchmarks.collapse.study import Cell, Evaluation, Group, Study, config_of
from search_gym.errors import OptionError, UnknownNameError

STUDIES = Path(__file__).parent / "studies"
DESIGNS = ("crossing", "one-at-a-time", "fraction", "cells")

Data = TypeVar("Data")


def find(name: str) -> Path:
    """The file of a study that comes with the package.

    Raises:
        UnknownNameError: there is none of this name.
    """
    return STUDIES / f"{pick('study', name, sorted(path.stem for path in STUDIES.glob('*.toml')))}.toml"


def load(path: Path) -> Study:
    """The study that a file describes; docs/collapse.md explains its parts.

    Raises:
        OptionError, UnknownNameError: the file cannot be read, or holds a name or a value that is not known.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"expected a study in {path}, got {error}; do: correct the file") from error
    try:
        return parse(data)
    except (OptionError, UnknownNameError) as error:
        raise type(error)(f"{path}: {error}") from error


def parse(data: Mapping[str, Any]) -> Study:
    """The study that the contents of a file describe.

    Raises:
        OptionError, UnknownNameError: see `load`.
    """
    _check_keys(data, ("name", "title", "seeds", "size", "evaluation", "center", "groups"), "the study")
    for key in ("name", "groups"):
        if key not in data:
            raise OptionError(f"expected {key!r} in the study, got {sorted(data)}; do: add it")
    size, evaluation = _dataclass(Size, data.get("size", {})), _dataclass(Evaluation, data.get("evaluation", {}))
    center = {name: check_level(name, level) for name, level in data.get("center", {}).items()}
    seeds = _seeds(data.get("seeds", [1, 2, 3, 4, 5]))
    groups = tuple(_group(entry, seeds) for entry in data["groups"])
    names = [group.name for group in groups]
    if not groups or len(set(names)) < len(names):
        raise OptionError(f"expected groups of different names, got {names}; do: rename one")
    return Study(
        str(data["name"]), str(data.get("title", data["name"])), size, evaluation, center, groups,
        tuple(_cells(groups, center, size)),
    )  # fmt: skip


def _cells(groups: Sequence[Group], center: Levels, size: Size) -> Iterator[Cell]:
    """Every cell of the groups once, even if several have it."""
    found: dict[str, Cell] = {}
    for group in groups:
        for algorithm, chosen in _combinations(group):
            levels = complete(algorithm, chosen, center)
            name = _name(algorithm, levels, center)
            if name in found:
                old = found[name]
                seeds = tuple(dict.fromkeys((*old.seeds, *group.seeds)))
                found[name] = replace(old, groups=tuple(dict.fromkeys((*old.groups, group.name))), seeds=seeds)
                continue
            options = options_of(levels, size)
            label = _label(algorithm, chosen)
            found[name] = Cell(name, label, algorithm, (group.name,), levels, options, group.seeds)
            config_of(found[name], group.seeds[0], Path())  # raises what is wrong with it
    return iter(found.values())


def _combinations(group: Group) -> Iterator[tuple[str, Chosen]]:
    if group.design == "fraction":
        for chosen in fraction(group.factors, group.generators):
            both = dict(group.fixed) | chosen
            yield str(both.pop("algorithm", group.algorithms[0])), both
        return
    for algorithm in group.algorithms:
        factors = {
            name: levels for name, levels in group.factors.items() if CATALOGUE[name].applies_to(algorithm)
        }  # fmt: skip
        if group.design == "crossing":
            found = crossing(factors)
        elif group.design == "one-at-a-time":
            found = one_at_a_time(factors)
        else:
            found = [dict(levels) for levels in group.cells if all(CATALOGUE[n].applies_to(algorithm) for n in levels)]
        for chosen in found:
            yield algorithm, dict(group.fixed) | chosen


def _group(data: Mapping[str, Any], seeds: tuple[int, ...]) -> Group:
    keys = ("name", "question", "fairness", "design", "algorithms", "factors", "fixed", "generators", "cells", "seeds")
    _check_keys(data, keys, "a group")
    missing = [key for key in ("name", "design") if key not in data]
    if missing:
        raise OptionError(f"expected {missing} in a group, got {sorted(data)}; do: add what is missing")
    design = pick("design", data["design"], DESIGNS)
    needed = "cells" if design == "cells" else "factors"
    if not data.get(needed):
        raise OptionError(f"expected {needed!r} in the group {data['name']!r} of design {design!r}; do: add it")
    factors: dict[str, tuple[Level, ...]] = {}
    for name, levels in data.get("factors", {}).items():
        if name == "algorithm" and design == "fraction":
            factors[name] = tuple(pick("algorithm", level, algorithms.names()) for level in levels)
            continue
        factors[name] = tuple(check_level(name, level) for level in levels)
        if len(set(levels)) < len(levels) or not levels:
            raise OptionError(f"expected different levels of {name}, at least one, got {levels}; do: correct them")
    named = data.get("algorithms", ["ppo", "grpo"])
    return Group(
        name=str(data["name"]),
        question=str(data.get("question", "")),
        fairness=str(data.get("fairness", "equal episodes and optimiser steps")),
        design=design,
        algorithms=tuple(pick("algorithm", algorithm, algorithms.names()) for algorithm in named),
        factors=factors,
        fixed={name: check_level(name, level) for name, level in data.get("fixed", {}).items()},
        generators=dict(data.get("generators", {})),
        cells=tuple({n: check_level(n, level) for n, level in levels.items()} for levels in data.get("cells", ())),
        seeds=_seeds(data["seeds"]) if "seeds" in data else seeds,
    )


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(v) is int for v in value) or len({*value}) < len(value):
        raise OptionError(f"expected different whole numbers as seeds, got {value!r}; do: correct them")
    return tuple(value)


def _name(algorithm: str, levels: Levels, center: Levels) -> str:
    """The cell's identity, and the name of its folder: its preset, and what differs from that or from the centre."""
    usual = complete(algorithm, {"preset": levels["preset"]}, center)
    preset = center.get("preset", CATALOGUE["preset"].center)
    parts = [] if levels["preset"] == preset else [str(levels["preset"])]
    parts += [f"{name}-{level}" for name, level in levels.items() if level != usual[name]]
    return re.sub(r"[^a-z0-9.]+", "-", "-".join([algorithm, *(parts or ["center"])]).lower())


def _label(algorithm: str, chosen: Levels) -> str:
    parts = [f"{CATALOGUE[name].label} {_text(level)}" for name, level in chosen.items()]
    return ", ".join([algorithm.upper(), *(parts or ["centre"])])


def _text(level: Level) -> str:
    return {True: "on", False: "off"}[level] if isinstance(level, bool) else str(level)


def _check_keys(data: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for key in data:
        pick(f"a key of {what}", key, known)


def _dataclass(kind: type[Data], data: Mapping[str, Any]) -> Data:
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name, value in data.items():
        pick(f"a key of {kind.__name__.lower()}", name, list(fields))
        if type(value) is not int or value < 1:
            raise OptionError(f"expected {name} >= 1, got {value!r}; do: correct it")
    return kind(**data)
