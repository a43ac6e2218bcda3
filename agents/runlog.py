"""What a run leaves behind (``config.json``, ``metrics.jsonl``) and what it shows while it goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from search_gym.errors import SearchGymError

if TYPE_CHECKING:
    from agents.health import Alarm
    from agents.trackers import Tracker

SHOWN = {
    "rollout/em": "EM",
    "rollout/searches": "searches",
    "rollout/valid_turns": "valid turns",
    "loss/entropy": "entropy",
    "loss/kl": "KL",
    "time/tokens_per_second": "tokens/s",
}


class RunLog:
    """Writes one JSON object a line for each update, and keeps a live table on the console.

    On a terminal the table is redrawn in place; elsewhere a line is printed every tenth update. ``metrics.jsonl`` is
    strict JSON: a number that is not finite is written as null.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Any,
        *,
        total: int,
        title: str,
        console: Console | None = None,
        finished: int = 0,
        trackers: Sequence[Tracker] = (),
        enabled: bool = True,
    ) -> None:
        """Begin a log, or go on with one.

        Args:
            run_dir: the folder of the run; it is made if there is none.
            config: what goes into ``config.json``, beside the command and, a line each, those that resumed the run.
            total: updates of the whole run.
            title: the name of the algorithm.
            console: where progress is shown; None: standard output.
            finished: updates that an earlier process finished and whose rows stay; rows of later ones go, and time
                counts on from the last row that stays.
            trackers: take the same metrics; the log closes them.
            enabled: False writes and shows nothing, for all but one process of a distributed run.

        Raises:
            SearchGymError: a row that should stay is malformed.
        """
        self.run_dir = run_dir
        self.total = total
        self.title = title
        self._enabled = enabled
        self._console = console or Console()
        self._trackers = tuple(trackers) if enabled else ()
        self._rows: list[Mapping[str, Any]] = []
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._file: TextIO | None = None
        self._earlier_seconds = 0.0
        if enabled:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_json(run_dir / "config.json", {**_commands(run_dir, finished), **to_jsonable(config)})
            self._open(finished)
        if self._rows:
            self._earlier_seconds = float(self._rows[-1]["time/seconds"])
        self.started = time.perf_counter()

    def __enter__(self) -> RunLog:
        if self._live is not None and self._enabled:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for tracker in self._trackers:
                stack.callback(tracker.close)
            if self._file is not None:
                stack.callback(self._file.close)
            if self._live is not None:
                stack.callback(self._live.stop)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training so far, those before an interruption included."""
        return self._earlier_seconds + time.perf_counter() - self.started

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """What has been written, a row for each update."""
        return self._rows

    def write(self, metrics: Mapping[str, float], alarms: Sequence[Alarm] = ()) -> None:
        """Append the metrics of one update, which hold "update", and show the alarms that began with it."""
        if self._file is None:
            return
        row: dict[str, Any] = {**metrics, "time/seconds": round(self.seconds, 3)}
        if alarms:
            row["alarms"] = [{"name": alarm.name, "message": alarm.message} for alarm in alarms]
        self._file.write(_to_line(row))
        self._file.flush()
        self._rows.append(row)
        for tracker in self._trackers:
            tracker.write(int(row["update"]), {name: row[name] for name in row if name not in ("update", "alarms")})
        for alarm in alarms:
            self.say(f"update {alarm.update}: {alarm.name}: {alarm.message}", style="bold red")
        if self._live is not None:
            self._live.update(self._table())
        elif len(self._rows) % 10 == 1 or row["update"] == self.total:
            shown = "  ".join(f"{name} {row[key]:.4g}" for key, name in SHOWN.items() if key in row)
            self.say(f"{self.title} {int(row['update'])}/{self.total}  {shown}  left {self._time_left()}")

    def rewind(self, finished: int) -> None:
        """Go back to the first ``finished`` updates; the rows of later ones move to ``abandoned.jsonl``."""
        if self._file is None:
            return
        self._file.close()
        later = [_to_line(row) for row in self._rows if row["update"] > finished]
        with (self.run_dir / "abandoned.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(later)
        self._open(finished)

    def say(self, text: str, style: str | None = None) -> None:
        """Show a line."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _open(self, finished: int) -> None:
        """Open metrics.jsonl for appending after the rows of the first ``finished`` updates."""
        path = self.run_dir / "metrics.jsonl"
        if finished and not path.exists():
            self.say(f"{path} is gone, so the rows of the first {finished} updates are lost", style="bold red")
        kept = dict(finished_lines(path, finished, "time/seconds")) if finished and path.exists() else {}
        write_text(path, "".join(kept.values()))
        self._rows = [json.loads(line) for line in kept.values()]
        self._file = path.open("a", encoding="utf-8")

    def _time_left(self) -> str:
        done = int(self._rows[-1]["update"])
        left = round(self.seconds / done * (self.total - done))
        return f"{left // 60}:{left % 60:02d}"

    def _table(self) -> Table:
        table = Table(
            title=f"{self.title}   {self._rows[-1]['update']}/{self.total}   time left {self._time_left()}",
            expand=False,
        )
        table.add_column("update", justify="right")
        for name in SHOWN.values():
            table.add_column(name, justify="right", min_width=9)
        for row in self._rows[-12:]:
            table.add_row(str(int(row["update"])), *(_number(row.get(key)) for key in SHOWN))
        table.add_section()
        table.add_row("", ProgressBar(total=self.total, completed=int(self._rows[-1]["update"]), width=9))
        return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _commands(run_dir: Path, finished: int) -> dict[str, Any]:
    """The command that began the run and, in lines of their own, those that went on with it."""
    path = run_dir / "config.json"
    if not finished or not path.exists():
        return {"command": command_line()}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        return {"command": f"{earlier['command']}\n{command_line()}  # after update {finished}"}
    except (ValueError, KeyError, TypeError) as error:
        raise SearchGymError(
            f"expected the configuration of the run in {path}, got {error!r}; do: restore the file, or delete it"
        ) from error


def finished_lines(path: Path, finished: int, *needed: str) -> Iterator[tuple[int, str]]:
    """The lines of the first ``finished`` updates, each with its update; a last one that a crash cut short is left out.

    Raises:
        SearchGymError: a line is no JSON object with an "update", or lacks one of the numbers that are ``needed``.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            update, *_ = int(row["update"]), *(float(row[name]) for name in needed)
        except (ValueError, KeyError, TypeError) as error:
            raise SearchGymError(
                f"expected the row of an update in {path}, line {number}, got {error!r}; do: restore the file, or "
                "start again in another folder"
            ) from error
        if update <= finished:
            yield update, line


def _to_line(row: Mapping[str, Any]) -> str:
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def to_jsonable(config: Any) -> Any:
    """A dataclass (or plain value) as JSON-able data."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_jsonable(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_jsonable(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_jsonable(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def command_line() -> str:
    """The command that started this process."""
    return " ".join([Path(sys.executable).name, *sys.orig_argv[1:]])


def write_config(run_dir: Path, config: Any) -> None:
    """Write ``config.json``: the command and every option; makes the folder if there is none."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json(run_dir / "config.json", {"command": command_line(), **to_jsonable(config)})


def write_json(path: Path, data: Any) -> None:
    """Write ``data`` as JSON; see `write_text`."""
    write_text(path, json.dumps(to_jsonable(data), indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
