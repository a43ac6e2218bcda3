"""Does GRPO collapse where PPO does not, why, and what helps? A study of many short training runs.

    python -m benchmarks.collapse --quick               # 5 minutes on two quiet cores: the question in small
    python -m benchmarks.collapse                       # under an hour: rates, causes and remedies
    python -m benchmarks.collapse --full                # what docs/findings.md is made from, in pieces if need be
    python -m benchmarks.collapse --study my.toml       # a study of your own (docs/collapse.md)
    python -m benchmarks.collapse --list                # its cells, how far they are, and how long the rest takes

Every run is a process of its own in ``RUN_DIR/runs/CELL/seed-N``. Stop the study whenever you like and give the same
command again: what is finished is kept, and what was interrupted goes on where it was. ``RUN_DIR`` holds
``study.json``, ``runs.jsonl`` (a row for each run) and ``table.parquet`` (a row for each update), which grow while the
study goes on, and at the end what is made of them: ``analysis.json`` and ``report.html``.

On a cluster, ``--launcher "srun --ntasks=1 --cpus-per-task=1 {command}" --jobs 200`` starts every run with a command of
yours, or ``--commands`` prints them all for an array of jobs.
"""

from __future__ import annotations

import fcntl
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.collapse import afterwards, warm_up
from benchmarks.collapse.earlier import finished_in, take_over
from benchmarks.collapse.estimate import Estimate, clock, total
from benchmarks.collapse.factors import FORMAT_WARMED
from benchmarks.collapse.folder import write_study
from benchmarks.collapse.launch import Launcher
from benchmarks.collapse.progress import ProgressDisplay
from benchmarks.collapse.schedule import Outcome, run_all
from benchmarks.collapse.study import Study
from benchmarks.collapse.study_file import find, load
from benchmarks.collapse.table import status_of, write_tables
from search_gym.errors import OptionError, SearchGymError

TABLE_SECONDS = 60.0
"""Tables are written anew while runs go on, but no more often."""


@dataclass(frozen=True)
class CollapseConfig:
    """Options of the study."""

    quick: bool = False
    """The study "quick": 5 minutes on two quiet cores."""
    full: bool = False
    """The study "full": everything, some hours on two cores."""
    study: Path | None = None
    """A study file; see docs/collapse.md."""
    run_dir: Path | None = None
    """Where everything goes; by default runs/collapse-NAME."""
    known: Path | None = None
    """Folder with the tables of an earlier study, such as benchmarks/results/collapse; its finished runs count here."""
    groups: tuple[str, ...] = ()
    """Only these groups of the study's cells; by default all."""
    seeds: tuple[int, ...] = ()
    """Only these seeds; by default all."""
    jobs: int = 2
    """Runs at a time, one thread each."""
    launcher: str = ""
    """Command that starts a run and waits for it, with {command} in the place of the run's own; also {name}, {log} and
    {folder}. By default runs are processes on this machine."""
    retries: int = 1
    """How often a run that fails is tried again, from where it was."""
    list: bool = False
    """Show the cells with the estimated time, and run nothing."""
    commands: bool = False
    """Print the command of every run that is not finished, one a line, and run nothing."""
    tables_only: bool = False
    """Run nothing: write tables, statistics and report of what is finished."""


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(CollapseConfig, args=args, prog="python -m benchmarks.collapse", description=__doc__)
    try:
        failures = run(config).failures
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where the runs were", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    if failures:
        sys.exit(f"error: expected every run to end well, got {len(failures)} that failed; do: see above, run again")


def run(config: CollapseConfig, console: Console | None = None) -> Outcome:
    """Run a study as the options say.

    Raises:
        OptionError, UnknownNameError: options or the study are wrong, or another process works on it.
    """
    console = console or Console(width=None if sys.stdout.isatty() else 160)
    for option, least in (("jobs", 1), ("retries", 0)):
        if getattr(config, option) < least:
            raise OptionError(f"expected {option} >= {least}, got {getattr(config, option)}; do: raise it")
    whole = choose(config)
    study = whole.select(config.groups, config.seeds)
    folder = config.run_dir or Path("runs") / f"collapse-{whole.name}"
    launcher = Launcher(config.launcher)
    if config.list:
        known = finished_in(config.known, study) if config.known is not None else []
        console.print(table_of(study, folder, config.jobs, [run.name for run in known]))
        return Outcome()
    with alone_in(folder):
        if config.known is not None:
            taken = take_over(config.known, whole, folder)
            console.print(f"took {len(taken)} finished runs from {config.known}", highlight=False)
        runs = study.runs()
        left = [run for run in runs if status_of(run, folder) != "finished"]
        write_study(folder, whole, runs=not config.tables_only)
        if config.commands:
            prepare(study, folder, console)
            for one in left:
                print(shlex.join(launcher.words(one, folder)))
            return Outcome()
        outcome = Outcome()
        try:
            if not config.tables_only:
                prepare(study, folder, console)
                estimate = Estimate(study, folder)
                console.print(
                    f"{study.title}: {len(study.cells)} cells, {len(runs)} runs, {len(runs) - len(left)} finished; "
                    f"about {total(estimate, left, config.jobs)} with {config.jobs} at a time",
                    highlight=False,
                )
                display = ProgressDisplay(left, folder, jobs=config.jobs, estimate=estimate, console=console)
                with interruptible(), display:
                    outcome = run_all(
                        left,
                        folder,
                        jobs=config.jobs,
                        launcher=launcher,
                        watcher=display,
                        retries=config.retries,
                        on_end=at_most_every(TABLE_SECONDS, lambda: write_tables(whole, folder)),
                    )
        finally:
            finished = write_tables(whole, folder)
        for failure in outcome.failures:
            console.print(f"FAILED {failure.run.name}: {failure.reason}", style="bold red", markup=False)
        if finished:
            afterwards.analyse(folder)
            page = afterwards.report(folder)
            console.print(f"{finished} finished runs; tables and results are in {page or folder}", highlight=False)
    return outcome


def choose(config: CollapseConfig) -> Study:
    """The study that the options name.

    Raises:
        OptionError: they name several.
    """
    named = [name for name in ("quick", "full", "study") if getattr(config, name)]
    if len(named) > 1:
        raise OptionError(f"expected one study, got the options {named}; do: keep one of them")
    return load(config.study or find(named[0] if named else "default"))


def prepare(study: Study, folder: Path, console: Console) -> None:
    """Make what several runs share."""
    if any(cell.options["model"] == FORMAT_WARMED for cell in study.cells):
        shown = warm_up.make(folder / "models" / FORMAT_WARMED)
        if shown:
            console.print(f"warmed a base model up with {shown} episodes of the right form and a wrong answer")


def table_of(study: Study, folder: Path, jobs: int, known: Collection[str]) -> Table:
    """Every cell, how far it is in ``folder`` with the runs that are ``known``, and how long it takes."""
    estimate = Estimate(study, folder)
    runs = study.runs()
    left = [run for run in runs if status_of(run, folder) != "finished" and run.name not in known]
    table = Table(
        title=f"{study.title} ({study.name})",
        caption=f"{len(study.cells)} cells, {len(runs)} runs, {len(runs) - len(left)} finished; about "
        f"{total(estimate, left, jobs)} left with {jobs} at a time",
    )
    for name in ("group", "cell", "what it is"):
        table.add_column(name, overflow="fold")
    for name in ("seeds", "finished", "a run", "all seeds"):
        table.add_column(name, justify="right")
    for cell in study.cells:
        own = [run for run in runs if run.cell == cell]
        finished = len(own) - sum(run.cell == cell for run in left)
        seconds = estimate.seconds(cell)
        table.add_row(
            cell.groups[0], cell.name, cell.label, str(len(own)), str(finished), clock(seconds),
            clock(seconds * len(own)),
        )  # fmt: skip
    return table


def at_most_every(seconds: float, function: Callable[[], object]) -> Callable[[], None]:
    """``function``, except for calls that come sooner than ``seconds`` after one that was not left out."""
    last = -math.inf

    def call() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            function()

    return call


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from running the same study meanwhile.

    Raises:
        OptionError: one does already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OptionError(
                f"expected nobody else to work on the study in {folder}, got another process; do: wait for it, stop "
                "it, or choose another --run-dir"
            ) from error
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, as a scheduler sends it, end the study as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
