"""How long runs take: what is known beforehand, corrected by what the finished runs of a study took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.collapse.factors import FORMAT_WARMED
from benchmarks.collapse.run import read_result
from benchmarks.collapse.study import Cell, Run, Study

START_SECONDS = 3.0
"""Of a run that builds a world, and evaluates at the end."""
SECONDS_PER_EPISODE = 1 / 182
"""CPU-seconds of sampling an episode and training on it, on the core where the figure was taken."""


def expected_seconds(cell: Cell) -> float:
    """CPU-seconds of one run of ``cell`` on the core that the constants are from."""
    options, levels = cell.options, cell.levels
    factor = 1.0
    factor *= {"separate": 1.6}.get(str(levels.get("critic")), 1.0)
    factor *= 1.0 + 0.15 * (int(levels["top_k"]) - 1)
    factor *= 1.15 if levels["kl"] != "none" else 1.0
    factor *= 0.5 + 0.5 * int(levels.get("max_rounds", 1)) if cell.algorithm == "dapo" else 1.0
    factor *= 0.9 if options["model"] == FORMAT_WARMED else 1.0
    return START_SECONDS + factor * SECONDS_PER_EPISODE * options["updates"] * options["rollouts_per_update"]


class Estimate:
    """Seconds of the runs of a study that are left, corrected by the ones that are finished."""

    def __init__(self, study: Study, folder: Path) -> None:
        self._folder = folder
        self._wall: dict[str, list[float]] = {}
        self._ratios: list[float] = []
        for run in study.runs():
            self.learn(run)

    def learn(self, run: Run) -> None:
        """Take into account how long ``run`` has taken, if it is finished."""
        result = read_result(run, self._folder)
        if result is not None and result["wall_seconds"] is not None:
            self._wall.setdefault(run.cell.name, []).append(result["wall_seconds"])
            self._ratios.append(result["wall_seconds"] / expected_seconds(run.cell))

    def seconds(self, cell: Cell) -> float:
        """Wall-clock seconds of one run of ``cell``."""
        if cell.name in self._wall:
            return median(self._wall[cell.name])
        return expected_seconds(cell) * (median(self._ratios) if self._ratios else 1.0)

    def left(self, runs: Iterable[Run], done: Mapping[str, float], jobs: int) -> float:
        """Seconds until all ``runs`` are finished, of which ``done`` gives shares by the run's name."""
        parts = [self.seconds(run.cell) * (1.0 - done.get(run.name, 0.0)) for run in runs]
        return max(sum(parts) / jobs, max(parts, default=0.0))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def total(estimate: Estimate, runs: Sequence[Run], jobs: int) -> str:
    """How long ``runs`` take together, ``jobs`` at a time."""
    return clock(estimate.left(runs, {}, jobs))
