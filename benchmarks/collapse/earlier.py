"""Take finished runs from the tables of an earlier study, so that a long one can be made in pieces anywhere."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from agents.runlog import write_config, write_json, write_text
from benchmarks.collapse.folder import read_study
from benchmarks.collapse.run import RESULT
from benchmarks.collapse.study import Run, Study, config_of
from benchmarks.collapse.table import identity, read_runs, read_table, status_of


def finished_in(earlier: Path, study: Study) -> list[Run]:
    """The finished runs of ``study`` in the tables in ``earlier``: cell, seed, options, size and evaluation are equal.

    Raises:
        OptionError: ``earlier`` holds no study, or not its tables.
    """
    before = read_study(earlier)
    if (before.size, before.evaluation) != (study.size, study.evaluation):
        return []
    options = {cell.name: dict(cell.options) for cell in before.cells}
    finished = {(row["cell"], row["seed"]) for row in read_runs(earlier) if row["status"] == "finished"}
    return [
        run
        for run in study.runs()
        if (run.cell.name, run.seed) in finished and options[run.cell.name] == dict(run.cell.options)
    ]


def take_over(earlier: Path, study: Study, folder: Path) -> list[Run]:
    """Unpack into ``folder`` the runs `finished_in` ``earlier`` that it does not have, and return them.

    Of held-out scores only the means are in the tables, and transcripts not at all.

    Raises:
        OptionError: ``earlier`` holds no study, or not its tables.
    """
    taken = [run for run in finished_in(earlier, study) if status_of(run, folder) != "finished"]
    finished = {(row["cell"], row["seed"]): row for row in read_runs(earlier)} if taken else {}
    updates: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in read_table(earlier) if taken else ():
        updates[row["cell"], row["seed"]].append(row)
    for run in taken:
        key = (run.cell.name, run.seed)
        _unpack(run, folder, finished[key], updates[key])
    return taken


def _unpack(run: Run, folder: Path, row: dict[str, Any], updates: list[dict[str, Any]]) -> None:
    files = run.folder(folder)
    files.mkdir(parents=True, exist_ok=True)
    write_config(files, config_of(run.cell, run.seed, folder))
    who = {*identity(run), "commit", "alarms"}
    lines = []
    for update in sorted(updates, key=lambda update: update["update"]):
        names = [name for name in update.get("alarms", "").split(", ") if name]
        numbers = {name: value for name, value in update.items() if name not in who}
        lines.append(json.dumps(numbers | {"alarms": [{"name": name} for name in names]}) + "\n")
    write_text(files / "metrics.jsonl", "".join(lines))
    scores: dict[str, dict[str, Any]] = {"held_out": {}, "held_out_common": {}}
    for name, value in row.items():
        part, _, kind = name.partition(".")
        if part in scores:
            scores[part][kind] = {"em": {"mean": value}}
    result = {
        "cell": run.cell.name,
        "label": run.cell.label,
        "algorithm": run.cell.algorithm,
        "levels": dict(run.cell.levels),
        "options": dict(run.cell.options),
        "seed": run.seed,
        "status": "finished",
        **{name: row[name] for name in ("commit", "updates", "wall_seconds", "cpu_seconds")},
        **scores,
    }
    write_json(files / RESULT, result)
