"""The exact state of a training run: what it needs to go on as if it had never stopped.

Tensors are stored as safetensors and everything else as JSON; nothing is ever unpickled. One process writes to a run
folder at a time; readers may come at any moment.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import search_gym
from agents.directories import hidden, replace_directory
from agents.models import CheckpointError
from search_gym.errors import OptionError

STATE_FORMAT = 1

_STATES = "states"
_TENSORS_FILE, _DATA_FILE = "state.safetensors", "state.json"
_NON_FINITE = "$float"


@dataclass(frozen=True)
class TrainingState:
    """All that a training run needs to go on as if it had never stopped."""

    update: int
    """Finished updates."""
    tensors: Mapping[str, Tensor]
    """Weights, optimiser moments, states of torch's generators: any dense tensors under flat names."""
    data: Mapping[str, Any]
    """Counters, schedules, the order of questions, states of other generators: JSON values with string keys."""


def write_state(run_dir: Path, state: TrainingState, *, keep: int = 1) -> Path:
    """Store ``state`` in ``run_dir/states/update-000040`` (its update) and return that folder.

    When the call returns, the state is on the disk and is what ``read_state`` finds. Then all but the ``keep`` newest
    states go, and all of later updates too: they belong to a future that was given up. A process killed at any moment
    leaves every complete state complete; what it was writing is invisible to readers, and the next call removes it.

    Raises:
        CheckpointError: ``state`` holds what cannot be stored exactly, or the disk is full. OptionError: ``keep`` < 1.
    """
    if keep < 1:
        raise OptionError(f"expected keep to be 1 or more, got {keep}; do: keep at least the newest state")
    data, tensors = _to_json(state.data, "data"), _storable(state.tensors)
    states = run_dir / _STATES
    states.mkdir(parents=True, exist_ok=True)
    _tidy(states)
    target = states / f"update-{state.update:06d}"
    new = hidden(target, "new")
    new.mkdir()
    try:
        save_file(tensors, new / _TENSORS_FILE)
        document = {
            "format": STATE_FORMAT,
            "search_gym": search_gym.__version__,
            "update": state.update,
            "tensors_sha256": _file_digest(new / _TENSORS_FILE),
            "data": data,
        }
        (new / _DATA_FILE).write_text(json.dumps({"sha256": _text_digest(document), **document}), encoding="utf-8")
        replace_directory(new, target)
    except SafetensorError as error:
        raise CheckpointError(f"expected to write {new}, got {error}; do: make room on the disk") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    drop_states(run_dir, after=state.update)
    for update in sorted(_states(states))[:-keep]:
        _remove(_states(states)[update])
    return target


def read_state(run_dir: Path, *, at_most: int | None = None) -> TrainingState | None:
    """The newest state in ``run_dir`` (of no more than ``at_most`` updates, if that is given), on the CPU, or None.

    Raises:
        CheckpointError: the state is damaged, or of another format; the message names the file.
    """
    states = _states(run_dir / _STATES)
    updates = [update for update in states if at_most is None or update <= at_most]
    if not updates:
        return None
    directory = states[max(updates)]
    older = sorted(updates)[:-1]
    remedy = f"delete {directory} to {f'go on from update {older[-1]}' if older else 'start again'}"
    return _read(directory, remedy)


def drop_states(run_dir: Path, *, after: int) -> None:
    """Remove the states of more than ``after`` updates, so that a run that goes back does not find them again."""
    for update, directory in _states(run_dir / _STATES).items():
        if update > after:
            _remove(directory)


def _read(directory: Path, remedy: str) -> TrainingState:
    path = directory / _DATA_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        written, number = document.pop("sha256"), document["format"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"expected a training state in {path}, got {error!r}; do: {remedy}") from error
    if number != STATE_FORMAT:
        raise CheckpointError(
            f"expected a training state of format {STATE_FORMAT} in {path}, got format {number!r} of search-gym "
            f"{document.get('search_gym')}; do: install that version, or {remedy}"
        )
    if _text_digest(document) != written:
        raise CheckpointError(f"expected the content that was written to {path}, got another checksum; do: {remedy}")
    path = directory / _TENSORS_FILE
    try:
        if _file_digest(path) != document["tensors_sha256"]:
            raise CheckpointError(f"expected what was written to {path}, got another checksum; do: {remedy}")
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"expected tensors in {path}, got {error!r}; do: {remedy}") from error
    return TrainingState(document["update"], tensors, _from_json(document["data"]))


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another."""
    storable, storages = {}, set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or name == "__metadata__":
            raise CheckpointError(
                f"expected dense tensors under names other than '__metadata__', got {name!r} of layout {tensor.layout} "
                f"on {tensor.device}; do: store it as a dense tensor under another name"
            )
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        storages.add(storage.data_ptr())
        storable[name] = tensor
    return storable


def _to_json(value: Any, where: str) -> Any:
    """``value`` as strict JSON: numbers that JSON does not have become ``{"$float": "nan"}``, tuples lists."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_NON_FINITE: repr(float(value))}
    if isinstance(value, (list, tuple)):
        return [_to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != _NON_FINITE for key in value):
        return {key: _to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise CheckpointError(
        f"expected JSON values with string keys other than {_NON_FINITE!r}, got {type(value).__name__} "
        f"{repr(value)[:80]} in {where}; do: turn arrays into lists or tensors, and keys into strings"
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        is_number = value.keys() == {_NON_FINITE}
        return float(value[_NON_FINITE]) if is_number else {key: _from_json(item) for key, item in value.items()}
    return value


def _states(states: Path) -> dict[int, Path]:
    """Every complete state by its update; one that was put aside counts where its successor is missing."""
    found = {}
    for pattern in (".update-*.old", "update-*"):
        for path in states.glob(pattern):
            if match := re.search(r"update-(\d{6,})", path.name):
                found[int(match[1])] = path
    return found


def _tidy(states: Path) -> None:
    """Remove what a killed process left, after giving a state that it had put aside its name back."""
    for aside in states.glob(".update-*.old"):
        target = states / aside.name.removeprefix(".").removesuffix(".old")
        if not target.exists():
            aside.rename(target)
    for leftover in states.glob(".update-*"):
        shutil.rmtree(leftover)


def _remove(directory: Path) -> None:
    """Delete a state; its name goes first, so that no half of it is ever seen."""
    trash = hidden(directory, "trash")
    shutil.rmtree(trash, ignore_errors=True)
    directory.rename(trash)
    shutil.rmtree(trash)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()
