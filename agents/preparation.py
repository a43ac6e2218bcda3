"""From a model's name to what training needs: the policy, the reference of its KL divergence, adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config
from transformers import PreTrainedModel

from agents.checkpoint import load_policy
from agents.config import ComputeConfig, TrainConfig
from agents.forward import PLAIN_HEADS, has_plain_head
from agents.policy import CausalLMPolicy, CausalLMWithValueHead
from search_gym.codec import TokenCodec
from search_gym.errors import OptionError
from search_gym.plugins import require

KEPT_ACTIVATIONS = 0.85
"""Share of their activations that compiled layers may keep; the cheapest others are computed again for the gradient."""


@dataclass(frozen=True)
class Models:
    """``policy`` is trained; ``reference``, if there is a KL term, is what it was at the beginning.

    With adapters there is no second model: the reference is the policy without them.
    """

    policy: CausalLMPolicy
    codec: TokenCodec
    reference: CausalLMPolicy | None
    adapters: Any = None
    checkpointed: Sequence[nn.Module] = ()

    @contextmanager
    def recomputing(self) -> Iterator[None]:
        """While the block runs, activations that are to be checkpointed are not kept.

        Transformers does it in training mode only, in which a layer would also refuse the cache that sampling needs.
        """
        for module in self.checkpointed:
            module.training = True
        try:
            yield
        finally:
            for module in self.checkpointed:
                module.training = False

    @contextmanager
    def as_reference(self) -> Iterator[CausalLMPolicy]:
        """The reference, for as long as the block runs."""
        if self.adapters is not None:
            with self.adapters.disable_adapter():
                yield self.policy
        else:
            assert self.reference is not None
            yield self.reference

    def merge_adapters(self) -> None:
        """Make the adapters part of the weights, as a model that is saved and evaluated should have them."""
        if self.adapters is not None:
            self.policy.model = self.adapters.merge_and_unload()


def prepare_models(config: TrainConfig, device: torch.device, *, with_values: bool, separate_critic: bool) -> Models:
    """Load and place the models of a run.

    Raises:
        OptionError: the model cannot do what the options ask of it. MissingDependencyError: LoRA needs peft. And all
            that ``load_policy`` raises.
    """
    policy: CausalLMPolicy
    loaded, codec = load_policy(config.model)
    policy = loaded
    if not with_values:
        policy = CausalLMPolicy(loaded.model, vocab_size=loaded.vocab_size)
    elif separate_critic:
        critic = loaded.critic or copy.deepcopy(loaded.model)
        policy = CausalLMWithValueHead(loaded.model, vocab_size=loaded.vocab_size, critic=critic)
        policy.value_head.load_state_dict(loaded.value_head.state_dict())
    policy.to(device).eval()  # for good: with dropout, training would score another policy than sampled
    reference = adapters = None
    if config.compute.lora_rank > 0:
        adapters = _add_adapters(policy.model, config)
    elif config.kl_coef > 0:
        reference = CausalLMPolicy(copy.deepcopy(policy.model), vocab_size=policy.vocab_size).requires_grad_(False)
        if config.compute.precision == "bf16":
            _cast_products(reference.model)
    shares = config.compute.share_prompts and has_plain_head(policy.model)
    policy.share_prompts = shares and not config.compute.gradient_checkpointing and config.compute.compile == "none"
    if reference is not None:
        reference.share_prompts = shares
    checkpointed = _checkpoint_gradients(policy) if config.compute.gradient_checkpointing else ()
    if config.compute.compile == "layers":
        _compile_layers(policy)
    return Models(policy, codec, reference, adapters, checkpointed)


def _cast_products(model: PreTrainedModel) -> None:
    """Keep the matrices of the layers in bfloat16, in which autocast multiplies them anyway: half the memory, the same
    numbers."""
    if has_plain_head(model):
        layers: Any = model.get_decoder().layers
        for module in layers.modules():
            if type(module) is nn.Linear:
                module.to(torch.bfloat16)


def _add_adapters(model: PreTrainedModel, config: TrainConfig) -> Any:
    """Put LoRA adapters into every linear layer of ``model`` but the output, and train nothing else of it."""
    peft = require("peft", extra="lora")
    compute: ComputeConfig = config.compute
    options = peft.LoraConfig(
        r=compute.lora_rank, lora_alpha=compute.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        return peft.get_peft_model(model, options)


def _compile_layers(policy: CausalLMPolicy) -> None:
    """Compile each layer; all have the same code, so it is compiled once for any number of them and for all lengths.

    What a gradient needs and a pointwise operation can compute again is not kept.
    """
    functorch_config.activation_memory_budget = KEPT_ACTIVATIONS
    models = [policy.model]
    if isinstance(policy, CausalLMWithValueHead) and policy.critic is not None:
        models.append(policy.critic)
    for model in models:
        if not has_plain_head(model):
            raise OptionError(
                f"expected a model of type {', '.join(PLAIN_HEADS)} for compile='layers', got "
                f"{model.config.model_type!r}; do: leave out --compile"
            )
        layers: Any = model.get_decoder().layers
        for layer in layers:
            layer.compile(dynamic=True)


def _checkpoint_gradients(policy: CausalLMPolicy) -> list[nn.Module]:
    """Prepare gradient checkpointing for `Models.recomputing`, keep dropout off, and return the modules that do it."""
    checkpointed: list[nn.Module] = []
    models = [policy.model]
    if isinstance(policy, CausalLMWithValueHead) and policy.critic is not None:
        models.append(policy.critic)
    for model in models:
        if not model.supports_gradient_checkpointing:
            raise OptionError(
                f"expected a model that supports gradient checkpointing, got {type(model).__name__}; "
                "do: leave out --gradient-checkpointing"
            )
        # transformers 5.24 renamed it.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) is True:
                checkpointed.append(module)
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "attention_dropout", None), float):
                setattr(module, "attention_dropout", 0.0)  # noqa: B010
    return checkpointed
