"""Language models as what the fast engine needs: a forward pass over rows of one key-value cache that never moves.

A `Decoder` is made from a Hugging Face model whose layers it knows and computes the same function with the same
weights, but for tokens of many sequences at once, without padding. `load` finds the decoder of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.ops import Chunk, Ops, Step, TorchOps
from agents.turn_rows import Sampling, TurnRows

LLAMAS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Model types that `LlamaDecoder` computes."""


class Decoder(Protocol):
    """A causal language model with a cache of ``num_rows`` sequences of at most ``capacity`` tokens.

    Memory stays where it is until `allocate` is called, so that a captured graph of a step remains true.
    """

    num_rows: int
    capacity: int
    steps: int
    """Tokens of each open turn between two looks of the host, unless a generator is asked for another number."""
    ops: Ops

    def allocate(self, num_rows: int, capacity: int) -> None:
        """Make room; what rows hold is kept as far as there is room for it."""
        ...

    def free(self) -> None:
        """Give back the memory of the cache and of copied weights; before the next use come `sync` and `allocate`."""
        ...

    def sync(self) -> None:
        """Take over the model's weights as they are now."""
        ...

    def prefill(self, token_ids: Int[Tensor, " N"], chunk: Chunk) -> None:
        """Append tokens to rows."""
        ...

    def step(self, token_ids: Int[Tensor, " R"], positions: Int[Tensor, " R"], step: Step) -> Float[Tensor, "R V"]:
        """Append one token, at ``positions``, to each of the first R rows: scores of the next ones."""
        ...

    def take_steps(self, rows: TurnRows, count: int, sampling: Sampling, longest: int) -> None:
        """`TurnRows.take_step`, ``count`` times; no row may come to see more than ``longest`` columns."""
        ...

    def copy_rows(self, sources: list[int], targets: list[int], length: int) -> None:
        """Make the first ``length`` columns of each of ``targets`` those of its source."""
        ...


class SamplingDecoder(Decoder, Protocol):
    """A decoder whose steps return to torch, where the next tokens are chosen."""

    def sample(
        self,
        scores: Float[Tensor, "R V"],
        uniforms: Float[Tensor, " R"] | None,
        temperature: float,
        vocab_size: int,
        top_p: float,
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
        """What ``agents.sampling.choose`` does, with what `step` has returned."""
        ...


class StepByStep:
    """`Decoder.take_steps` for a `SamplingDecoder`."""

    def take_steps(self: SamplingDecoder, rows: TurnRows, count: int, sampling: Sampling, longest: int) -> None:
        for _ in range(count):
            rows.take_step(self, sampling, longest)


def load(model: PreTrainedModel, *, dtype: torch.dtype | None = None, ops: Ops | None = None) -> Decoder | None:
    """The decoder of ``model``, None if there is none for models of its kind.

    ``dtype`` of matrix products and cache; by default the model's own. ``ops`` default to the fused kernels on a GPU
    that has Triton.
    """
    kind = model.config.get_text_config().model_type
    ops = choose_ops(model.device) if ops is None else ops
    if kind in LLAMAS:
        from agents.llama_decoder import LlamaDecoder

        return LlamaDecoder(model, dtype=dtype or model.dtype, ops=ops) if _is_plain(model) else None
    return _load_tiny(model) if kind == "search_gym_tiny" else None


def _load_tiny(model: PreTrainedModel) -> Decoder:
    """The compiled one on a CPU where numba is installed, else the one in torch."""
    from agents.tiny_decoder import TinyDecoder

    if model.device.type == "cpu":
        try:
            from agents.tiny_cpu_decoder import TinyCpuDecoder
        except ImportError:
            return TinyDecoder(model)
        if TinyCpuDecoder.knows(model):
            return TinyCpuDecoder(model)
    return TinyDecoder(model)


def knows(model: PreTrainedModel) -> bool:
    """Whether `load` has a decoder for ``model``."""
    kind = model.config.get_text_config().model_type
    return kind == "search_gym_tiny" or (kind in LLAMAS and _is_plain(model))


def choose_ops(device: torch.device) -> Ops:
    """The fastest `Ops` there are for ``device``."""
    if device.type == "cuda":
        try:
            from agents.triton_ops import TritonOps
        except ImportError:
            return TorchOps()
        return TritonOps()
    return TorchOps()


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether nothing in the configuration asks for what `LlamaDecoder` does not compute."""
    config = model.config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        "dynamic" not in kinds
        and "longrope" not in kinds
        and not getattr(config, "attn_logit_softcapping", None)
        and not getattr(config, "final_logit_softcapping", None)
        and head_dim & (head_dim - 1) == 0
    )


def effective_weight(linear: nn.Module) -> Tensor:
    """The weight of a linear layer, with the adapter that peft may have put onto it."""
    base: Any = getattr(linear, "base_layer", None)
    if base is None:
        weight = linear.weight
        assert isinstance(weight, Tensor)
        return weight.detach()
    layer: Any = linear
    weight = base.weight.detach()
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name).detach().to(weight.dtype)
    return weight


def make_chunk(rows: Sequence[int], starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Chunk:
    """The chunk of these runs, its tensors on ``device``."""
    token_rows = torch.tensor(rows).repeat_interleave(torch.tensor(counts))
    positions = torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    return Chunk(rows, starts, counts, token_rows.to(device), positions.to(device))
