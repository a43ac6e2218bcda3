"""Weights that are spread over processes (FSDP): each keeps a part of them, of their gradients and of Adam's state.

Processes sample different numbers of tokens, so they cannot gather the weights layer by layer while they sample. Each
has a whole policy for that, into which the trained weights are gathered once an update.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.environment import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from agents.config import ComputeConfig
from agents.policy import CausalLMPolicy
from agents.preparation import Models
from search_gym.errors import OptionError


def make_accelerator(cpu: bool) -> Accelerator:
    """What connects this process to the others, as its launcher wants it.

    Raises:
        OptionError: the launcher asked for DeepSpeed, Megatron, or FSDP's first version.
    """
    plugin = None
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # every process needs the whole policy
        os.environ.setdefault("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise OptionError(f"expected FSDP version 2, got {plugin.fsdp_version}; do: launch with --fsdp_version 2")
    accelerator = Accelerator(cpu=cpu, fsdp_plugin=plugin)
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate 1.15 goes on with DDP here, without a word.
        accelerator.state.fsdp_plugin = plugin
        accelerator.state.distributed_type = DistributedType.FSDP
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise OptionError(
            f"expected processes that each hold the whole model (DDP) or shard it by FSDP, got {kind.value}; "
            "do: launch with --multi_gpu, or with --use_fsdp --fsdp_version 2"
        )
    return accelerator


def trainable(models: Models, accelerator: Accelerator, config: ComputeConfig) -> Models:
    """``models`` with a policy whose weights may be sharded: a copy, if they are to be, else the same.

    Raises:
        OptionError: its layers are compiled, which the copy's would not be.
    """
    if not accelerator.is_fsdp2:
        return models
    if config.compile != "none":
        raise OptionError(f"expected compile='none' with FSDP, got {config.compile!r}; do: leave out --compile")
    policy, checkpointed = copy.deepcopy((models.policy, models.checkpointed))
    policy.share_prompts = False  # processes would gather weights for different numbers of calls
    return replace(models, policy=policy, checkpointed=checkpointed)


def shard(
    policy: CausalLMPolicy, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """``policy`` and its ``optimizer``, with every weight spread over the processes, layer by layer."""
    plugin: Any = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(getattr(policy.model, "_no_split_modules", None) or ())
    wrapped, prepared = accelerator.prepare(policy, optimizer)
    return wrapped, prepared.optimizer


def whole(x: Tensor) -> Tensor:
    """All of ``x``; if it is spread over processes, all of them have to ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def part_like(x: Tensor, weight: Tensor) -> Tensor:
    """A copy of ``x`` on the device of ``weight``, or this process's part of it, spread as ``weight`` is."""
    x = x.to(weight.device, copy=True)
    if not isinstance(weight, DTensor):
        return x
    return distribute_tensor(x, weight.device_mesh, weight.placements, src_data_rank=None)


@torch.no_grad()
def gather(trained: nn.Module, policy: nn.Module) -> None:
    """Put the weights of ``trained`` into ``policy``, whose structure is the same."""
    for weight, part in zip(policy.parameters(), trained.parameters(), strict=True):
        if weight.requires_grad:
            weight.copy_(whole(part))
