"""The folder of a study: ``study.json``, from which every run takes what it needs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.runlog import command_line, to_jsonable, write_json
from benchmarks.collapse.factors import CATALOGUE, Size
from benchmarks.collapse.study import Cell, Evaluation, Group, Study
from benchmarks.runs import machine
from search_gym.errors import OptionError

STUDY = "study.json"
ROOT = Path(__file__).parents[2]


def commit_of() -> str | None:
    """The commit of this code, with "+" when files under version control differ from it; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_study(folder: Path, study: Study, *, runs: bool = True) -> None:
    """Write ``study.json``: all that its runs and its readers have to know.

    Without ``runs``, which says that nothing will be run, it goes on naming the command, the commit and the machine of
    those that were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain, path = to_plain(study), folder / STUDY
    if not runs and path.is_file():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        plain |= {name: earlier[name] for name in ("command", "commit", *machine()) if name in earlier}
    write_json(path, plain)


def to_plain(study: Study) -> dict[str, Any]:
    """What ``study.json`` holds; see docs/collapse.md."""
    varied: dict[str, list[Any]] = {}
    for cell in study.cells:
        for name, level in cell.levels.items():
            levels = varied.setdefault(name, [])
            if level not in levels:
                levels.append(level)
    return {
        "name": study.name,
        "title": study.title,
        "command": command_line(),
        "commit": commit_of(),
        **machine(),
        "budget": to_jsonable(study.size),
        "evaluation": to_jsonable(study.evaluation),
        "seeds": list(study.seeds),
        "center": dict(study.center),
        "factors": {
            name: {
                "label": CATALOGUE[name].label,
                "levels": sorted(levels, key=lambda level: (isinstance(level, str), level)),
                "center": study.center.get(name, CATALOGUE[name].center),
            }
            for name, levels in varied.items()
        },
        "groups": [to_jsonable(group) for group in study.groups],
        "cells": [
            {
                "cell": cell.name,
                "label": cell.label,
                "algorithm": cell.algorithm,
                "group": cell.groups[0],
                "groups": list(cell.groups),
                "levels": dict(cell.levels),
                "options": dict(cell.options),
                "seeds": list(cell.seeds),
            }
            for cell in study.cells
        ],
    }


def read_study(folder: Path) -> Study:
    """The study in ``folder``.

    Raises:
        OptionError: there is none, or it cannot be read.
    """
    path = folder / STUDY
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Study(
            data["name"],
            data["title"],
            Size(**data["budget"]),
            Evaluation(**data["evaluation"]),
            data["center"],
            tuple(Group(**_tuples(group)) for group in data["groups"]),
            tuple(
                Cell(
                    cell["cell"], cell["label"], cell["algorithm"], tuple(cell["groups"]), cell["levels"],
                    cell["options"], tuple(cell["seeds"]),
                )
                for cell in data["cells"]
            ),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"expected a study in {path}, got {error!r}; do: write it with python -m benchmarks.collapse --run-dir"
        ) from error


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    factors = {name: tuple(levels) for name, levels in group["factors"].items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()} | {
        "factors": factors
    }
