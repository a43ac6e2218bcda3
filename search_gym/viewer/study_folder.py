"""What a study leaves in its folder: its definition, a row for each run, a row for each update, and the statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.errors import SearchGymError
from search_gym.plugins import require
from search_gym.viewer.run_folder import Sample, malformed, read_object, read_rows, read_samples

REMEDY = "python -m benchmarks.collapse --tables-only --run-dir"
FEWEST_RUNS = 2
"""Runs without which there is no mean to draw."""


@dataclass(frozen=True)
class Study:
    """What is known of a study; ``analysis`` is empty where the statistics have not been made."""

    folder: Path
    plan: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]
    analysis: Mapping[str, Any]

    @property
    def finished(self) -> Sequence[Mapping[str, Any]]:
        """The runs that have ended well."""
        return [run for run in self.runs if run["status"] == "finished"]

    @property
    def outcomes(self) -> dict[tuple[str, int], str]:
        """Whether each run, by cell and seed, "kept" what it learned, "collapsed", or "never learned"."""
        return {(run["cell"], run["seed"]): run["kind"] for run in self.analysis.get("runs", ())}


def load_study(folder: Path) -> Study:
    """Read ``study.json``, ``runs.jsonl`` and, if it is there, ``analysis.json``.

    Raises:
        SearchGymError: a file is missing or malformed.
    """
    plan = read_object(folder / "study.json")
    path = folder / "runs.jsonl"
    if not path.is_file():
        raise SearchGymError(f"expected a row for each run in {path}, got no file; do: {REMEDY} {folder}")
    runs = [row for _, row in read_rows(path)]
    analysis = folder / "analysis.json"
    study = Study(folder, plan, runs, read_object(analysis) if analysis.is_file() else {})
    for name, rows, fields in (("study.json", plan.get("cells"), ("cell", "label")), ("runs.jsonl", runs, ("status",))):
        if not isinstance(rows, list) or not all(field in row for row in rows for field in fields):
            raise malformed(str(folder / name), f"rows with {', '.join(fields)}", rows)
    return study


def samples_of(study: Study, most_tokens: int) -> tuple[list[tuple[str, list[Sample]]], int]:
    """The episodes of finished runs, by name, and how many runs have some that are left out.

    All cells come with their first seed before any comes with its second, as long as ``most_tokens`` allow.
    """
    found: list[tuple[str, list[Sample]]] = []
    tokens = left_out = 0
    for run in sorted(study.finished, key=lambda run: run["seed"]):
        samples = list(read_samples(study.folder / "runs" / run["cell"] / f"seed-{run['seed']}"))
        length = sum(len(sample.tokens) for sample in samples)
        if not samples:
            continue
        if tokens + length > most_tokens:
            left_out += 1
            continue
        tokens += length
        found.append((f"{run.get('label', run['cell'])}, seed {run['seed']}", samples))
    return found, left_out


class Table:
    """``table.parquet``: every metric of every run by update."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingDependencyError: pyarrow is not installed. SearchGymError: there is no table."""
        path = folder / "table.parquet"
        if not path.is_file():
            raise SearchGymError(f"expected the metrics of the study in {path}, got no file; do: {REMEDY} {folder}")
        table = require("pyarrow.parquet", extra="view").read_table(path)
        self._columns = {name: table.column(name) for name in table.column_names}
        self._rows: dict[tuple[str, int], list[int]] = {}
        for row, key in enumerate(zip(self._list("cell"), self._list("seed"), strict=True)):
            self._rows.setdefault(key, []).append(row)
        self._updates = np.array(self._list("update"), dtype=np.int64)

    def _list(self, name: str) -> list[Any]:
        return self._columns[name].to_pylist()

    def curves(self, metric: str) -> Iterator[tuple[tuple[str, int], npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
        """Of each run that has ``metric``: cell and seed, updates (n,), and values (n,), NaN where unknown."""
        if metric not in self._columns:
            return
        values = np.array([np.nan if x is None else x for x in self._list(metric)], dtype=np.float64)
        for key, rows in self._rows.items():
            if np.isfinite(values[rows]).any():
                yield key, self._updates[rows], values[rows]


def mean_curve(
    curves: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]], *, draws: int = 400
) -> tuple[npt.NDArray[np.float64], ...]:
    """The mean over runs at each update, and its 95 % bootstrap interval: updates, mean, low, high, each (n,).

    A run counts at the updates where it has a finite value. Where fewer than `FEWEST_RUNS` have one, there is no point.
    """
    last = max((int(updates.max()) for updates, _ in curves), default=0)
    values = np.full((len(curves), last + 1), np.nan)
    for row, (updates, numbers) in enumerate(curves):
        values[row, updates] = numbers
    known = np.isfinite(values)
    kept = np.flatnonzero(known.sum(axis=0) >= FEWEST_RUNS)
    filled, known = np.where(known, values, 0.0)[:, kept], known[:, kept]
    weights = np.random.default_rng(0).multinomial(len(curves), np.full(len(curves), 1 / max(1, len(curves))), draws)
    totals, counts = weights @ filled, weights @ known
    means = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    low, high = np.nanquantile(means, (0.025, 0.975), axis=0) if kept.size else (np.empty(0), np.empty(0))
    return kept.astype(np.float64), filled.sum(axis=0) / known.sum(axis=0), low, high
