"""What a decoder with a key-value cache of its own computes beside matrix products, in plain torch.

``agents/triton_ops.py`` has the same functions as fused GPU kernels; these are their slow references, and what runs on
a CPU. Tokens of several sequences stand in one row of N: a *step* has one token of each sequence, a *chunk* any number.

Shapes: N tokens, R rows of the cache, Q query heads, H key heads (Q is a multiple of H), D numbers a head, L columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.sampling import choose

Activation = Literal["silu", "gelu_tanh"]
EVERYTHING = 2**30
"""A window that hides nothing."""


@dataclass(frozen=True)
class Step:
    """One token of each of the first R rows: ``lengths`` (R,) int32 counts the columns that it sees, its own included.

    0 where the row takes no part; what is computed for it is not used. ``longest`` bounds ``lengths`` on the host.
    """

    lengths: Int[Tensor, " R"]
    longest: int


@dataclass(frozen=True)
class Chunk:
    """Runs of new tokens, each the end of what its row holds: ``rows``, ``starts`` (position of the first), ``counts``.

    Token n of the chunk is in ``token_rows[n]`` of the cache, at ``positions[n]``; runs follow one another.
    """

    rows: Sequence[int]
    starts: Sequence[int]
    counts: Sequence[int]
    token_rows: Int[Tensor, " N"]
    positions: Int[Tensor, " N"]


class Ops(Protocol):
    """The functions of this module; see there."""

    def add_rms_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]: ...
    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor: ...
    def rotate_and_store(
        self,
        qkv: Tensor,
        phases: tuple[Tensor, Tensor],
        positions: Tensor,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor: ...
    def attend_step(
        self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scale: float, window: int
    ) -> Tensor: ...
    def attend_chunk(
        self, query: Tensor, keys: Tensor, values: Tensor, chunk: Chunk, scale: float, window: int
    ) -> Tensor: ...
    def sample(
        self, logits: Tensor, uniforms: Tensor | None, temperature: float, vocab_size: int
    ) -> tuple[Tensor, Tensor]: ...


class TorchOps:
    """All of `Ops` in plain torch, on any device."""

    def add_rms_norm(
        self,
        x: Float[Tensor, "N W"],
        delta: Float[Tensor, "N W"] | None,
        weight: Float[Tensor, " W"],
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "N W"], Float[Tensor, "N W"]]:
        """``x + delta`` in float32, and its RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) in ``dtype``."""
        x = x if delta is None else x + delta
        return x, F.rms_norm(x, weight.shape, weight, eps).to(dtype)

    def gated(self, gate_up: Float[Tensor, "N U"], activation: Activation) -> Float[Tensor, "N I"]:
        """activation(gate) * up, where gate and up are the two halves of U = 2 I columns."""
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")) * up

    def rotate_and_store(
        self,
        qkv: Float[Tensor, "N A D"],
        phases: tuple[Float[Tensor, "P E"], Float[Tensor, "P E"]],
        positions: Int[Tensor, " N"],
        rows: Int[Tensor, " N"],
        keys: Float[Tensor, "S H L D"],
        values: Float[Tensor, "S H L D"],
    ) -> Float[Tensor, "N Q D"]:
        """Rotate queries and keys to their positions, and put keys and values into the cache (in place).

        ``qkv`` holds Q queries, H keys, H values; ``phases`` the cosines and sines of E = D / 2 angles of each
        position (Su et al. 2021, arXiv 2104.09864, with the two halves of a head as pairs). Returns the queries.
        """
        num_keys = keys.shape[1]
        cos, sin = (x[positions][:, None] for x in phases)
        first, second = qkv[:, :-num_keys].float().chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv.dtype)
        keys[rows, :, positions] = rotated[:, -num_keys:]
        values[rows, :, positions] = qkv[:, -num_keys:]
        return rotated[:, :-num_keys]

    def attend_step(
        self,
        query: Float[Tensor, "R Q D"],
        keys: Float[Tensor, "S H L D"],
        values: Float[Tensor, "S H L D"],
        step: Step,
        scale: float,
        window: int = EVERYTHING,
    ) -> Float[Tensor, "R Q D"]:
        """Each row's query over the last ``window`` of the columns that it sees."""
        columns = torch.arange(step.longest, device=query.device)
        lengths = step.lengths[:, None].clamp_min(1)  # no row of the softmax is empty
        visible = (columns < lengths) & (columns >= lengths - window)
        num_rows = query.shape[0]
        shown = keys[:num_rows, :, : step.longest], values[:num_rows, :, : step.longest]
        return _attend(query[:, :, None], shown, visible[:, None, None], scale)[:, :, 0]

    def attend_chunk(
        self,
        query: Float[Tensor, "N Q D"],
        keys: Float[Tensor, "S H L D"],
        values: Float[Tensor, "S H L D"],
        chunk: Chunk,
        scale: float,
        window: int = EVERYTHING,
    ) -> Float[Tensor, "N Q D"]:
        """Each token's query over what its row holds up to the token itself, at most the last ``window`` columns."""
        rows = torch.tensor(chunk.rows, device=query.device)
        counts = torch.tensor(chunk.counts, device=query.device)
        longest = max(start + count for start, count in zip(chunk.starts, chunk.counts, strict=True))
        offsets = torch.arange(max(chunk.counts), device=query.device)
        is_token = offsets < counts[:, None]
        padded = query.new_zeros((*is_token.shape, *query.shape[1:]))
        padded[is_token] = query
        positions = torch.tensor(chunk.starts, device=query.device)[:, None] + offsets
        columns = torch.arange(longest, device=query.device)
        visible = (columns <= positions[:, :, None]) & (columns > positions[:, :, None] - window)
        shown = keys[rows, :, :longest], values[rows, :, :longest]
        return _attend(padded.transpose(1, 2), shown, visible[:, None], scale).transpose(1, 2)[is_token]

    def sample(
        self, logits: Float[Tensor, "R V"], uniforms: Float[Tensor, " R"] | None, temperature: float, vocab_size: int
    ) -> tuple[Int[Tensor, " R"], Float[Tensor, " R"]]:
        """A token for each row and its log-probability: its distribution function inverted at ``uniforms`` in [0, 1).

        Without ``uniforms``, the most probable one. Ids from ``vocab_size`` on have probability 0.
        """
        return choose(logits, uniforms, temperature, vocab_size)


def _attend(
    query: Float[Tensor, "B Q T D"],
    shown: tuple[Float[Tensor, "B H L D"], Float[Tensor, "B H L D"]],
    visible: Bool[Tensor, "B 1 _ L"],
    scale: float,
) -> Float[Tensor, "B Q T D"]:
    grouped = query.shape[1] != shown[0].shape[1]
    return F.scaled_dot_product_attention(query, *shown, attn_mask=visible, scale=scale, enable_gqa=grouped)
