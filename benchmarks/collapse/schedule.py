"""Runs on the cores there are: a few at a time, finished ones kept, failed ones tried again and named."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agents.runlog import write_json
from benchmarks.collapse.launch import Launcher, Started, log_of
from benchmarks.collapse.run import read_result
from benchmarks.collapse.study import Run
from benchmarks.collapse.table import FAILED

POLL_SECONDS = 0.2
LAST_LINES = 5


@dataclass(frozen=True)
class Failure:
    """A run that did not end well, even when it was tried again."""

    run: Run
    reason: str
    """The last lines that it printed."""


@dataclass
class Outcome:
    """What became of the runs."""

    finished: list[Run] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass
class _Active:
    run: Run
    process: Started
    tries: int


class Watcher:
    """Told what happens; the base class looks away."""

    def started(self, run: Run) -> None:
        """A process for ``run`` has begun."""

    def ended(self, run: Run, *, finished: bool) -> None:
        """``run`` has come to its end; unless ``finished``, it has failed for good."""

    def retried(self, run: Run, reason: str) -> None:
        """``run`` has failed and will be tried once more."""

    def tick(self, active: Sequence[Run]) -> None:
        """Some time has passed."""


def run_all(
    runs: Sequence[Run],
    folder: Path,
    *,
    jobs: int,
    launcher: Launcher,
    watcher: Watcher | None = None,
    retries: int = 1,
    on_end: Callable[[], None] = lambda: None,
) -> Outcome:
    """Make all ``runs`` in their order, ``jobs`` at a time; those that are finished are not made again.

    A run that fails is tried again ``retries`` times, from its last saved state, and does not stop the others. However
    this call ends, no process that it has started goes on. ``on_end`` is called after every run.

    Raises:
        OptionError: a finished run belongs to other options.
    """
    watcher = watcher or Watcher()
    outcome = Outcome()
    waiting = deque((run, 0) for run in runs if read_result(run, folder) is None)
    active: list[_Active] = []
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run, tries = waiting.popleft()
                active.append(_Active(run, launcher.start(run, folder), tries + 1))
                watcher.started(run)
            time.sleep(POLL_SECONDS)
            for entry in list(active):
                run, code = entry.run, entry.process.poll()
                if code is None:
                    continue
                active.remove(entry)
                if code == 0 and read_result(run, folder) is not None:
                    (run.folder(folder) / FAILED).unlink(missing_ok=True)
                    outcome.finished.append(run)
                    watcher.ended(run, finished=True)
                    on_end()
                    continue
                reason = _reason(run, folder, code)
                if entry.tries <= retries:
                    waiting.appendleft((run, entry.tries))
                    watcher.retried(run, reason)
                    continue
                write_json(run.folder(folder) / FAILED, {"exit_status": code, "tries": entry.tries, "reason": reason})
                outcome.failures.append(Failure(run, reason))
                watcher.ended(run, finished=False)
                on_end()
            watcher.tick([entry.run for entry in active])
    finally:
        for entry in active:
            entry.process.stop()
    return outcome


def _reason(run: Run, folder: Path, code: int) -> str:
    """Why a process has failed, as far as its log says."""
    log = log_of(run, folder)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    if code == 0:
        lines.append("the command ended without a result; a launcher has to wait until the run has ended")
    return f"exit status {code}: " + "\n".join(line for line in lines[-LAST_LINES:] if line.strip())


def progress_of(run: Run, folder: Path, updates: int) -> float:
    """The share of a run that is done, as far as its log has got."""
    path = run.folder(folder) / "metrics.jsonl"
    if not path.is_file():
        return 0.0
    with path.open("rb") as file:
        last = b""
        for line in file:
            last = line if line.endswith(b"\n") else last
    return min(1.0, json.loads(last)["update"] / updates) if last else 0.0
