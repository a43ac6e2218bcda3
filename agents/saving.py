"""The state of a run as named tensors and JSON, from which it goes on exactly.

All randomness of training is drawn from (seed, update, purpose), so that no generator has a state to keep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agents.models import CheckpointError
from agents.sharding import part_like, whole
from search_gym.errors import OptionError

_FREE_TO_CHANGE = {"command", "resumed", "save", "run_dir"}


def run_tensors(
    policy: nn.Module, optimizer: torch.optim.Optimizer, *, is_main_process: bool = True
) -> dict[str, Tensor]:
    """Every trained weight, and what the optimiser remembers about it.

    What is spread over processes is gathered: all of them have to call this, and the main one gets the tensors.
    """
    tensors = {}
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            for key, value in {"": weight, **optimizer.state.get(weight, {})}.items():
                tensor = whole(value.detach())
                if is_main_process:
                    tensors[f"optimizer.{name}.{key}" if key else f"policy.{name}"] = tensor.cpu()
    return tensors


@torch.no_grad()
def restore_tensors(tensors: Mapping[str, Tensor], policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put `run_tensors` back.

    Raises:
        CheckpointError: they belong to another model, or to other options.
    """
    weights = {f"policy.{name}": weight for name, weight in policy.named_parameters() if weight.requires_grad}
    saved = {name: tensor for name, tensor in tensors.items() if name.startswith("policy.")}
    wrong = sorted(weights.keys() ^ saved.keys()) or sorted(
        name for name, weight in weights.items() if weight.shape != saved[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"expected the saved state of a model with these weights, got others, or of another shape: {wrong[:3]} "
            f"({len(wrong)} in all); do: resume with the model and the options that the run began with"
        )
    fused = bool(optimizer.defaults.get("fused"))
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            weight.copy_(part_like(tensors[f"policy.{name}"], weight))
            prefix = f"optimizer.{name}."
            kept = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            optimizer.state[weight] = {key: part_like(value, weight) for key, value in kept.items() if key != "step"}
            if kept:  # Adam counts its steps on the CPU, unless it is one kernel.
                optimizer.state[weight]["step"] = kept["step"].to(weight.device if fused else "cpu", copy=True)
            else:
                del optimizer.state[weight]


def check_same_options(run_dir: Path, options: Mapping[str, Any]) -> None:
    """Raises OptionError: the run in ``run_dir`` was begun with other ``options``, which are named."""
    path = run_dir / "config.json"
    began = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ours = json.loads(json.dumps(options))
    names = sorted(name for name in (ours.keys() | began.keys()) - _FREE_TO_CHANGE if began.get(name) != ours.get(name))
    if names:
        shown = ", ".join(f"{name} (then {began.get(name)!r}, now {ours.get(name)!r})" for name in names)
        raise OptionError(
            f"expected the options that the run in {run_dir} began with, got others: {shown}; "
            "do: repeat them, choose another run_dir, or leave out --resume to begin again"
        )
