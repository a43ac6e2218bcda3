"""What a study shows while it goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from benchmarks.collapse.estimate import Estimate, clock
from benchmarks.collapse.schedule import Watcher, progress_of
from benchmarks.collapse.study import Run

REFRESH_SECONDS = 1.0


class ProgressDisplay(Watcher):
    """A bar for all runs and one for each that is going on; without a terminal, a line for every run that ends."""

    def __init__(self, runs: Sequence[Run], folder: Path, *, jobs: int, estimate: Estimate, console: Console) -> None:
        self._folder, self._jobs, self._estimate, self._console = folder, jobs, estimate, console
        self._left = list(runs)
        self._total, self._ended = len(runs), 0
        self._tasks: dict[str, TaskID] = {}
        self._next = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._all = self._bars.add_task("runs", total=len(runs), left="")

    def __enter__(self) -> ProgressDisplay:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def started(self, run: Run) -> None:
        """See `Watcher`."""
        updates = run.cell.options["updates"]
        self._tasks[run.name] = self._bars.add_task(f"  {run.name}", total=updates, left="updates")

    def ended(self, run: Run, *, finished: bool) -> None:
        """See `Watcher`."""
        self._ended += 1
        self._left = [other for other in self._left if other != run]
        self._estimate.learn(run)
        self._drop(run)
        left = clock(self._estimate.left(self._left, {}, self._jobs))
        self._bars.update(self._all, completed=self._ended, left=f"about {left} left")
        if not finished or not self._console.is_terminal:
            what = "finished" if finished else "FAILED"
            self._say(f"{self._ended}/{self._total}  {what}  {run.name}  about {left} left")

    def retried(self, run: Run, reason: str) -> None:
        """See `Watcher`."""
        self._drop(run)
        self._say(f"{run.name} failed and is tried again: {reason}")

    def tick(self, active: Sequence[Run]) -> None:
        """See `Watcher`."""
        if not self._console.is_terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_SECONDS
        done = {run.name: progress_of(run, self._folder, run.cell.options["updates"]) for run in active}
        for run in active:
            updates = run.cell.options["updates"]
            self._bars.update(self._tasks[run.name], completed=round(done[run.name] * updates))
        left = clock(self._estimate.left(self._left, done, self._jobs))
        self._bars.update(self._all, left=f"about {left} left")

    def _drop(self, run: Run) -> None:
        task = self._tasks.pop(run.name, None)
        if task is not None:
            self._bars.remove_task(task)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
