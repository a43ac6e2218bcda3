"""Where metrics go besides ``metrics.jsonl``: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from search_gym.errors import UnknownNameError
from search_gym.plugins import require


class Tracker(Protocol):
    """Takes the metrics of each update."""

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics`` of ``update``; if that is not after the last one, the run has gone back to before it."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


def make_tracker(name: str, run_dir: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker called ``name``, for the run in ``run_dir`` with the JSON-able ``config``.

    Raises:
        UnknownNameError: no tracker has that name; the message suggests one. MissingDependencyError: its package is
            not installed.
    """
    if name not in _MAKERS:
        close = difflib.get_close_matches(name, _MAKERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known names: {', '.join(_MAKERS)}."
        raise UnknownNameError(f"expected a tracker, got {name!r}; {hint}")
    return _MAKERS[name](run_dir, config)


class TensorBoard:
    """Event files in ``run_dir/tensorboard``, written with tensorboardX; see them with ``tensorboard --logdir``."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._module = require("tensorboardX", extra="tracking")
        self._folder = run_dir / "tensorboard"
        self._writer: Any = None
        self._last = math.inf
        self._config = json.dumps(config, indent=2)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Record ``metrics``; whatever the files hold of this update and later ones is void from now on."""
        if update <= self._last:
            self.close()
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=update)
            self._writer.add_text("config", f"```json\n{self._config}\n```", update)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)
        self._writer.flush()
        self._last = update

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


_MAKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {"tensorboard": TensorBoard}
