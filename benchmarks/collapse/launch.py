"""Starting a run: as a process on this machine, or with a command that a template describes. Never through a shell."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.context
import os
import shlex
import signal
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agents import algorithms
from benchmarks.collapse.folder import ROOT
from benchmarks.collapse.study import Run
from search_gym.errors import OptionError

FIELDS = ("command", "name", "log", "folder")
MODULE = "benchmarks.collapse.run"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
STOP_SECONDS = 10


def command_of(run: Run, study_folder: Path) -> list[str]:
    """The words of the command that makes a run; it can be started by hand in the repository's root."""
    return [sys.executable, "-m", MODULE, str(study_folder.absolute()), run.cell.name, str(run.seed)]


@dataclass(frozen=True)
class Launcher:
    """What starts runs. ``template`` is a command with ``{command}`` in the place of the run's own, or empty.

    The template is cut into words as a shell would, and each field is put into its word afterwards, so that no name can
    become a word or a command of its own. ``{command}`` as a word by itself becomes the words of the run's command;
    inside a longer word it is quoted for the shell that will read it. The command has to wait until the run has ended
    (``srun``, ``sbatch --wait``, ``ray job submit``).
    """

    template: str = ""

    def __post_init__(self) -> None:
        """Raises OptionError: the template cannot be read, has no {command}, or names another field."""
        if not self.template:
            return
        try:
            words = shlex.split(self.template)
            fields = [field for word in words for _, field, _, _ in string.Formatter().parse(word) if field is not None]
        except ValueError as error:
            raise OptionError(
                f"expected a command as launcher, got {self.template!r}: {error}; do: correct it"
            ) from error
        if fields.count("command") != 1 or not set(fields) <= set(FIELDS):
            raise OptionError(
                f"expected a launcher with {{command}} once, and perhaps {{name}}, {{log}} and {{folder}}, got "
                f"{self.template!r}; do: correct it, as in 'srun --ntasks=1 {{command}}' (literal braces are doubled)"
            )

    def words(self, run: Run, study_folder: Path) -> list[str]:
        """The words of the command that starts ``run``."""
        command = command_of(run, study_folder)
        if not self.template:
            return command
        folder = run.folder(study_folder).absolute()
        fields = {"name": run.name.replace("/", "-"), "folder": str(folder), "log": str(log_of(run, study_folder))}
        found: list[str] = []
        for word in shlex.split(self.template):
            if word == "{command}":
                found += command
            else:
                found.append(word.format(command=shlex.join(command), **fields))
        return found

    def start(self, run: Run, study_folder: Path) -> Started:
        """Start ``run`` in a session of its own; all that it prints is appended to its log."""
        log = log_of(run, study_folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        words = self.words(run, study_folder)
        if not self.template:
            return Forked(words, log)
        with log.open("ab") as file:
            return Started(
                subprocess.Popen(
                    words,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **ENVIRONMENT},
                    start_new_session=True,
                )
            )


class Started:
    """A process that has been started in a session of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        """The exit status, minus the signal's number if one ended it; None while it goes on."""
        return self._process.poll()

    def stop(self) -> None:
        """End it, and what it has started itself."""
        if self.poll() is None:
            _stop_session(self._process.pid, lambda: self._process.wait(STOP_SECONDS))
            self._process.wait()


class Forked(Started):
    """A run that begins as the copy of a process which has imported all that runs need, and so begins at once.

    It is what its command would have been: its words are those that ``config.json`` and ``result.json`` name.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        os.environ.update(ENVIRONMENT)  # the process that is copied gets them
        self._child = _context().Process(target=_run_as, args=(list(words), str(log)))
        self._child.start()

    def poll(self) -> int | None:
        """See `Started`."""
        return self._child.exitcode

    def stop(self) -> None:
        """See `Started`."""
        if self.poll() is None:
            assert self._child.pid is not None
            _stop_session(self._child.pid, lambda: self._child.join(STOP_SECONDS))
            self._child.kill()
            self._child.join()


@cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([MODULE, *(f"agents.{name}" for name in algorithms.names())])
    return context


def _run_as(words: list[str], log: str) -> None:
    """In the new process: become what ``words`` would have started."""
    os.setsid()
    os.chdir(ROOT)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    sys.orig_argv[:] = words
    importlib.import_module(MODULE).main(words[words.index(MODULE) + 1 :])


def log_of(run: Run, study_folder: Path) -> Path:
    """What a run prints."""
    return run.folder(study_folder).absolute() / "log.txt"


def _stop_session(pid: int, wait: Callable[[], object]) -> None:
    """Ask the session of a leader to end, and after a while do not ask."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        with suppress(subprocess.TimeoutExpired):
            wait()
