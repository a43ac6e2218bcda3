"""The turns that are being sampled, a row each, as tensors where the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agents import stop_tags
from agents.ops import Step

if TYPE_CHECKING:
    from agents.decoders import SamplingDecoder


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when a turn ends; ``tag_table`` is that of `stop_tags`."""

    tag_table: Tensor
    temperature: float
    greedy: bool
    top_p: float
    vocab_size: int
    eos_id: int


@dataclass
class TurnRows:
    """What the device knows of the turn in each row (R,); ``turn_tokens`` and ``turn_logprobs`` (R, U + 1) are its
    record, whose last column takes what is not one."""

    tokens: Tensor  # to be fed next
    lengths: Tensor  # columns of the cache that are in use
    is_open: Tensor
    counts: Tensor  # tokens of the turn so far
    limits: Tensor
    tags: Tensor  # the state of `stop_tags`
    uniforms: Tensor  # (R, U)
    turn_tokens: Tensor
    turn_logprobs: Tensor

    @classmethod
    def make(cls, num_rows: int, turn_length: int, device: torch.device) -> TurnRows:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros((num_rows, *shape), dtype=dtype, device=device)

        return cls(
            tokens=zeros(),
            lengths=zeros(),
            is_open=zeros(dtype=torch.bool),
            counts=zeros(),
            limits=zeros(),
            tags=zeros(),
            uniforms=zeros(turn_length, dtype=torch.float64),
            turn_tokens=zeros(turn_length + 1),
            turn_logprobs=zeros(turn_length + 1, dtype=torch.float32),
        )

    @property
    def turn_length(self) -> int:
        return self.uniforms.shape[1]

    def first(self, num_rows: int) -> TurnRows:
        """A view of the first rows."""
        return TurnRows(*(getattr(self, field.name)[:num_rows] for field in fields(self)))

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for field in fields(self):
            x = getattr(self, field.name)
            x[targets] = x[sources]
        self.is_open[sources] = False

    def take_step(self, decoder: SamplingDecoder, sampling: Sampling, longest: int) -> None:
        """One token more for every open turn, and whether that ends it; nothing waits for the device.

        ``longest`` bounds the columns that any row sees, its new one included.
        """
        is_open = self.is_open.clone()
        step = Step(((self.lengths + 1) * is_open).int(), longest)
        scores = decoder.step(self.tokens, self.lengths, step)
        column = torch.where(is_open, self.counts, self.turn_length)[:, None]
        points = None if sampling.greedy else self.uniforms.gather(1, column.clamp_max(self.turn_length - 1)).squeeze(1)
        ids, logprobs = decoder.sample(scores, points, sampling.temperature, sampling.vocab_size, sampling.top_p)
        self.turn_tokens.scatter_(1, column, ids[:, None])
        self.turn_logprobs.scatter_(1, column, logprobs[:, None])
        self.counts += is_open
        self.lengths += is_open
        self.tags.copy_(torch.where(is_open, sampling.tag_table[self.tags, ids].long(), self.tags))
        self.tokens.copy_(torch.where(is_open, ids, self.tokens))
        has_ended = (self.tags == stop_tags.CLOSED) | (ids == sampling.eos_id) | (self.counts >= self.limits)
        self.is_open &= ~has_ended
