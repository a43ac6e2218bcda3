"""The tables of a study: ``runs.jsonl``, a row for each run, and ``table.parquet``, a row for each update of a run."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from agents.runlog import write_text
from benchmarks.collapse.run import RESULT, read_result
from benchmarks.collapse.study import Run, Study
from search_gym.errors import OptionError
from search_gym.plugins import require

RUNS, TABLE, FAILED = "runs.jsonl", "table.parquet", "failed.json"
WINDOW = 5
"""Updates over which exact match is averaged for ``best_em`` and ``final_em``."""
NOT_METRICS = {"update", "alarms"}


def status_of(run: Run, folder: Path) -> str:
    """ "finished", "failed" or "pending"."""
    files = run.folder(folder)
    if (files / RESULT).is_file():
        return "finished"
    return "failed" if (files / FAILED).is_file() else "pending"


def run_rows(study: Study, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each run of the study, finished or not.

    Raises:
        OptionError: a run belongs to other options.
    """
    for run in study.runs():
        status = status_of(run, folder)
        row: dict[str, Any] = {**identity(run), "group": run.cell.groups[0], "label": run.cell.label, "status": status}
        result = read_result(run, folder) if status == "finished" else None
        if result is not None:
            em = [metrics["rollout/em"] for metrics in metrics_of(run, folder)]
            row |= {
                "commit": result["commit"],
                "wall_seconds": result["wall_seconds"],
                "cpu_seconds": result["cpu_seconds"],
                "updates": result["updates"],
                **{f"held_out.{kind}": by["em"]["mean"] for kind, by in result["held_out"].items()},
                **{f"held_out_common.{kind}": by["em"]["mean"] for kind, by in result["held_out_common"].items()},
                # A run that never found anything to train on has no row at all.
                "best_em": round(max(running_means(em)), 6) if em else None,
                "final_em": round(running_means(em)[-1], 6) if em else None,
                **(collapse_of(em) if em else {"collapsed": False, "collapse_update": None}),
            }
        yield row


def collapse_of(em: Sequence[float]) -> dict[str, Any]:
    """Whether and when the run collapsed, as `benchmarks.collapse.definition` says; nothing where that is not there."""
    if importlib.util.find_spec("benchmarks.collapse.definition") is None:
        return {}
    update = importlib.import_module("benchmarks.collapse.definition").collapse_update(em)
    return {"collapsed": update is not None, "collapse_update": update}


def running_means(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """The mean of each ``window`` values in a row; of all of them, if they are fewer."""
    window = min(window, len(values))
    return [fmean(values[i : i + window]) for i in range(len(values) - window + 1)]


def table_rows(study: Study, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each update of each finished run: who it is, and every metric under its own name."""
    for run in study.runs():
        result = read_result(run, folder)
        if result is None:
            continue
        who = {**identity(run), "commit": result["commit"]}
        for metrics in metrics_of(run, folder):
            numbers = {name: value for name, value in metrics.items() if name not in NOT_METRICS}
            alarms = ", ".join(alarm["name"] for alarm in metrics.get("alarms", ()))
            yield {**who, "update": metrics["update"], "alarms": alarms or None, **numbers}


def metrics_of(run: Run, folder: Path) -> list[dict[str, Any]]:
    """The rows of the run's ``metrics.jsonl``; a last one that is half written is none."""
    path = run.folder(folder) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]


def write_tables(study: Study, folder: Path) -> int:
    """Write both tables and return how many runs are finished."""
    rows = list(run_rows(study, folder))
    write_text(folder / RUNS, "".join(json.dumps(row) + "\n" for row in rows))
    updates = list(table_rows(study, folder))
    if updates:
        write_parquet(folder / TABLE, updates)
    return sum(row["status"] == "finished" for row in rows)


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that need not have the same columns; where a row has no number, the table holds null."""
    pyarrow, parquet = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {name: _column(pyarrow, values) for name, values in columns.items()}
    temporary = path.with_name(path.name + ".tmp")
    parquet.write_table(pyarrow.table(arrays), temporary, compression="zstd")
    temporary.replace(path)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``runs.jsonl``.

    Raises:
        OptionError: there is no such file.
    """
    path = _existing(folder / RUNS)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_table(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``table.parquet``, without what is null.

    Raises:
        OptionError: there is no such file.
    """
    path = _existing(folder / TABLE)
    rows = require("pyarrow.parquet", extra="data").read_table(path).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise OptionError(
            f"expected the table of a study in {path}, got no file; do: run python -m benchmarks.collapse"
        )
    return path


def identity(run: Run) -> dict[str, Any]:
    """The columns that say which run a row belongs to."""
    cell = run.cell
    factors = {f"factor.{name}": level for name, level in cell.levels.items()}
    return {"cell": cell.name, "algorithm": cell.algorithm, **factors, "seed": run.seed}


def _column(pyarrow: Any, values: list[Any]) -> Any:
    """Numbers that are not whole are stored with seven digits, which is more than any of them is worth."""
    kinds = {type(value) for value in values if value is not None}
    if float in kinds and kinds <= {int, float}:
        return pyarrow.array([None if v is None else float(v) for v in values], type=pyarrow.float32())
    return pyarrow.array(values)
