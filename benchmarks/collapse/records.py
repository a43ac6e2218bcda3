"""What statistics read of a study: each finished run as one record, from the tables in the study's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.collapse.definition import DEFAULT, Definition, Outcome, outcome, running_best, smoothed
from benchmarks.collapse.folder import STUDY
from benchmarks.collapse.table import read_runs, read_table
from search_gym.errors import OptionError

Level = str | int | float | bool
HELD_OUT, COMMON = "held_out.", "held_out_common."
EM = "rollout/em"


@dataclass(frozen=True)
class Record:
    """A finished run. ``metrics`` hold a value for each update, NaN where there is none.

    An update that found nothing to train on has left no row. The policy was the same after it as before, so exact match
    is that of the update before; 0 where there was none.
    """

    cell: str
    algorithm: str
    levels: Mapping[str, Level]
    seed: int
    updates: npt.NDArray[np.int64]
    metrics: Mapping[str, npt.NDArray[np.float64]]
    held_out: Mapping[str, float]
    """Greedy exact match on held-out questions by kind, "all" included, in the run's own environment."""
    held_out_common: Mapping[str, float]
    """The same in the environment that all runs share."""
    commit: str | None = None

    @property
    def em(self) -> npt.NDArray[np.float64]:
        """Exact match of sampled episodes by update."""
        return self.metrics[EM]

    @cached_property
    def outcome(self) -> Outcome:
        """What became of it, by the definition that everything uses."""
        return outcome(self.em)

    def outcome_by(self, definition: Definition) -> Outcome:
        """What became of it by another definition."""
        return self.outcome if definition == DEFAULT else outcome(self.em, definition)

    @cached_property
    def peaks(self) -> npt.NDArray[np.int64]:
        """For each update (n,), the index of the best mean exact match so far; -1 before there is one."""
        mean = smoothed(self.em)
        is_best = mean == running_best(mean)
        return np.maximum.accumulate(np.where(is_best, np.arange(len(mean)), -1))

    @cached_property
    def memo(self) -> dict[Any, Any]:
        """Room for what is computed of the run again and again."""
        return {}

    @property
    def collapsed(self) -> bool:
        """Whether it collapsed within its budget."""
        return self.outcome.kind == "collapsed"

    @property
    def time(self) -> int:
        """The update of its collapse, or the last one, at which it was seen not to have collapsed."""
        return self.outcome.onset or len(self.em)

    @property
    def folder(self) -> str:
        """Where its files are, in the folder of the study."""
        return f"runs/{self.cell}/seed-{self.seed}"

    @property
    def kinds(self) -> list[str]:
        """The kinds of held-out questions."""
        return [kind for kind in self.held_out if kind != "all"] or list(self.held_out)


@dataclass(frozen=True)
class StudyData:
    """A study's description (``study.json``), its planned runs, and the finished ones."""

    study: Mapping[str, Any]
    planned: Sequence[Mapping[str, Any]]
    records: Sequence[Record]

    def of_cell(self, cell: str) -> list[Record]:
        """Its finished runs, by seed."""
        return sorted((record for record in self.records if record.cell == cell), key=lambda record: record.seed)

    def cells_of(self, group: str) -> list[Mapping[str, Any]]:
        """The cells that serve ``group``, as ``study.json`` describes them."""
        return [cell for cell in self.study["cells"] if group in cell.get("groups", [cell["group"]])]


def load(folder: Path) -> StudyData:
    """The study in ``folder``, as far as it is finished.

    Raises:
        OptionError: the folder holds no study, or no tables.
    """
    path = folder / STUDY
    if not path.is_file():
        raise OptionError(f"expected a study in {path}, got no file; do: run python -m benchmarks.collapse")
    study = json.loads(path.read_text(encoding="utf-8"))
    planned = read_runs(folder)
    finished = {(row["cell"], row["seed"]): row for row in planned if row["status"] == "finished"}
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    if finished:
        for row in read_table(folder):
            rows.setdefault((row["cell"], row["seed"]), []).append(row)
    return StudyData(study, planned, [_record(run, rows.get(key, [])) for key, run in finished.items()])


def _record(run: Mapping[str, Any], rows: list[dict[str, Any]]) -> Record:
    by_update = {row["update"]: row for row in rows}
    updates = np.arange(1, max([*by_update, run.get("updates") or 1]) + 1)
    names = {name for row in rows for name, value in row.items() if "/" in name and isinstance(value, (int, float))}
    metrics = {
        name: np.array([by_update.get(update, {}).get(name, np.nan) for update in updates], dtype=np.float64)
        for name in sorted(names)
    }
    metrics[EM] = _held(metrics.get(EM, np.full(len(updates), np.nan)))
    return Record(
        cell=run["cell"],
        algorithm=run["algorithm"],
        levels=_after(run, "factor."),
        seed=run["seed"],
        updates=updates,
        metrics=metrics,
        held_out=_after(run, HELD_OUT),
        held_out_common=_after(run, COMMON),
        commit=run.get("commit"),
    )


def _held(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each missing value (n,) replaced by the one before it, 0 at the start."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], 0.0)


def _after(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): row[name] for name in row if name.startswith(prefix) and row[name] is not None}
