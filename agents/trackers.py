"""Where metrics go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, trackio.

A run that was interrupted and goes on shows every update once. TensorBoard's files can take updates back, so they
always say what ``metrics.jsonl`` says. The other two cannot: they keep what they were told first, and a killed process
may leave out the update it was about to send.
"""

from __future__ import annotations

import difflib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agents.runlog import write_json
from search_gym.errors import SearchGymError, UnknownNameError
from search_gym.plugins import require

PROJECT = "search-gym"


class Tracker(Protocol):
    """Takes the metrics of each update."""

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics`` of ``update``; if that is not after the last one, the run has gone back to before it."""
        ...

    def close(self) -> None:
        """Send what is left; nothing is written afterwards."""
        ...


def make_tracker(name: str, run_dir: Path, config: Mapping[str, Any], *, finished: int = 0) -> Tracker:
    """The tracker called ``name``: "tensorboard", "wandb" or "trackio".

    Args:
        name: the tracker.
        run_dir: the folder of the run; its own name becomes the name of the run.
        config: the options of the run as JSON values.
        finished: updates that were finished before; 0 starts a new run, more goes on with the one in ``run_dir``.

    Raises:
        UnknownNameError: no tracker has that name; the message suggests one. MissingDependencyError: its package is
            not installed.
    """
    if name not in _MAKERS:
        close = difflib.get_close_matches(name, _MAKERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(_MAKERS)}."
        raise UnknownNameError(f"expected a tracker, got {name!r}; {hint}")
    return _MAKERS[name](run_dir, config, finished)


class TensorBoard:
    """Event files in ``run_dir/tensorboard``; see them with ``tensorboard --logdir``.

    Torch's writer is used because its ``flush`` waits for what is queued, so that an update is in the file, and safe
    from a kill, when ``write`` returns.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any], finished: int) -> None:
        require("tensorboard", extra="tracking")
        self._writer_type = require("torch.utils.tensorboard", extra="tracking").SummaryWriter
        self._folder = run_dir / "tensorboard"
        self._last = finished
        self._open()
        self._writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", finished + 1)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics``; what the files hold of this update and of later ones counts no more."""
        if update <= self._last:
            self._writer.close()
            self._last = update - 1
            self._open()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()
        self._last = update

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _open(self) -> None:
        # Readers sort files by name, which begins with the second in which they were made.
        deadline = time.monotonic() + 1.1
        while list(self._folder.glob(f"*.tfevents.{int(time.time()):010d}.*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._writer = self._writer_type(str(self._folder), purge_step=self._last + 1)


class HostedRun:
    """A run of Weights & Biases or of trackio, whose interfaces agree in what is used here.

    ``run_dir/<package>.json`` keeps the run's identity and the last update that was sent. It is written before the
    update is, so that none is ever sent twice.
    """

    def __init__(self, package: str, run_dir: Path, config: Mapping[str, Any], finished: int) -> None:
        module = require(package, extra="tracking")
        self._path = run_dir / f"{package}.json"
        self._sent = self._recall() if finished else {"run_id": uuid.uuid4().hex[:12], "last_update": 0}
        run_dir.mkdir(parents=True, exist_ok=True)
        name, run_id = run_dir.resolve().name, self._sent["run_id"]
        options: dict[str, Any] = {"config": dict(config), "resume": "allow" if finished else "never"}
        if package == "wandb":
            settings = module.Settings(console="off")
            options |= {"id": run_id, "name": name, "dir": str(run_dir), "settings": settings}
        else:
            options |= {"name": f"{name}-{run_id}", "embed": False}
        self._run = module.init(project=os.environ.get(f"{package.upper()}_PROJECT", PROJECT), **options)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Send ``metrics``, unless those of this update or of a later one were sent before."""
        if update <= self._sent["last_update"]:
            return
        self._sent["last_update"] = update
        write_json(self._path, self._sent)
        self._run.log(dict(metrics), step=update)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()

    def _recall(self) -> dict[str, Any]:
        if not self._path.exists():
            return {"run_id": uuid.uuid4().hex[:12], "last_update": 0}
        try:
            sent = json.loads(self._path.read_text(encoding="utf-8"))
            return {"run_id": str(sent["run_id"]), "last_update": int(sent["last_update"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SearchGymError(
                f"expected the run's identity and last update in {self._path}, got {error!r}; do: delete this file to "
                "go on as a new run"
            ) from error


def _wandb(run_dir: Path, config: Mapping[str, Any], finished: int) -> HostedRun:
    return HostedRun("wandb", run_dir, config, finished)


def _trackio(run_dir: Path, config: Mapping[str, Any], finished: int) -> HostedRun:
    return HostedRun("trackio", run_dir, config, finished)


_MAKERS: dict[str, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}
