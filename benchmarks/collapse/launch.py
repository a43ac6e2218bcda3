"""Starting a run: as a process on this machine, or with a command that a template describes. Never through a shell."""

from __future__ import annotations

import os
import shlex
import signal
import string
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.collapse.folder import ROOT
from benchmarks.collapse.study import Run
from search_gym.errors import OptionError

FIELDS = ("command", "name", "log", "folder")
MODULE = "benchmarks.collapse.run"


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

    def start(self, run: Run, study_folder: Path) -> subprocess.Popen[bytes]:
        """Start ``run`` in a process group of its own; all that it prints is appended to its log."""
        log = log_of(run, study_folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as file:
            return subprocess.Popen(
                self.words(run, study_folder),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )


def log_of(run: Run, study_folder: Path) -> Path:
    """What a run prints."""
    return run.folder(study_folder).absolute() / "log.txt"


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that `Launcher.start` has started, and those that it has started itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
