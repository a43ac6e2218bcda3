"""Random batches of token-aligned numbers, and the ways in which they may change without a sampled token noticing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from search_gym.errors import OptionError
from search_gym.transcript import Span, SpanKind

Numbers = npt.NDArray[np.float64]

# What a row holds for each of its tokens.
NUMBERS = (
    "rewards",
    "values",
    "old_values",
    "returns",
    "advantages",
    "logprobs",
    "old_logprobs",
    "ref_logprobs",
    "entropy",
)


@dataclass(frozen=True)
class Settings:
    """How a check tries its subject."""

    seed: int = 0
    """Decides every number: the same seed, the same batches."""
    num_batches: int = 6
    """How many random batches are tried; the first are the smallest."""
    group_size: int = 2
    """Consecutive rows that answer the same question; a batch holds one or more whole groups."""
    framework: Literal["torch", "numpy"] = "torch"
    """Whose arrays the subject takes and returns; gradients need torch."""
    tolerance: float = 1e-5
    """Largest difference that counts as rounding, as a part of the largest number compared; inputs are float64."""

    def __post_init__(self) -> None:
        if min(self.num_batches, self.group_size) < 1:
            raise OptionError(f"expected num_batches and group_size >= 1, got {self.num_batches}, {self.group_size}")
        if self.framework not in ("torch", "numpy"):
            raise OptionError(f"expected framework 'torch' or 'numpy', got {self.framework!r}")
        if not 0 <= self.tolerance < 1:
            raise OptionError(f"expected tolerance in [0, 1), got {self.tolerance}")


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Everything that a subject may read: numpy arrays or torch tensors, indexed by the token that they talk about.

    A row is a prompt, then actions and observations in turn, then padding. Every number is drawn at random, outside the
    sampled tokens too, as a model computes something for every position; only rewards are 0 there.
    """

    rewards: Any
    """(B, T) float64: something on each sampled token, and an outcome on the last of each row."""
    values: Any
    """(B, T) float64: the value of the state in which a token was chosen."""
    old_values: Any
    """(B, T) float64: values of the policy that sampled."""
    returns: Any
    """(B, T) float64: targets of the values."""
    advantages: Any
    """(B, T) float64."""
    logprobs: Any
    """(B, T) float64: log-probabilities of the tokens under the policy that learns."""
    old_logprobs: Any
    """(B, T) float64: log-probabilities under the policy that sampled; the ratios lie around 1."""
    ref_logprobs: Any
    """(B, T) float64: log-probabilities under the reference policy."""
    entropy: Any
    """(B, T) float64: entropy of the distribution from which a token was chosen."""
    loss_mask: Any
    """(B, T) bool: True = sampled by the policy."""
    info_mask: Any
    """(B, T) bool: True = written by the environment after the prompt; ``loss_mask | info_mask`` is the response."""
    attention_mask: Any
    """(B, T) bool: True = a token of the row, False = padding."""
    row_rewards: Any
    """(B,) float64: the sum of a row's rewards, as an environment pays it at the end."""
    group_ids: Any
    """(B,) int64: rows with the same number answer the same question."""

    def take(self, rows: npt.NDArray[np.int64]) -> TokenBatch:
        """The batch of ``rows`` (n,), in their order."""
        return TokenBatch(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Row:
    """One episode: who wrote its tokens, and ``numbers`` (n,) of each kind."""

    spans: tuple[Span, ...]
    numbers: Mapping[str, Numbers]
    group_id: int

    @property
    def length(self) -> int:
        return self.spans[-1].stop

    def mask(self, kind: str) -> npt.NDArray[np.bool_]:
        """(n,) bool; True = in a span of ``kind``."""
        return np.concatenate([np.full(span.stop - span.start, span.kind == kind) for span in self.spans])

    def lengthen(self, index: int, growth: int, rng: np.random.Generator) -> Row:
        """The row whose span number ``index``, written by the environment, has ``growth`` tokens more."""
        grown = self.spans[index]
        where = int(rng.integers(grown.start, grown.stop + 1))
        new = draw_numbers(rng, growth, is_action=False)
        numbers = {name: np.insert(self.numbers[name], where, new[name]) for name in NUMBERS}
        moved = tuple(
            Span(s.kind, s.start + growth * (i > index), s.stop + growth * (i >= index))
            for i, s in enumerate(self.spans)
        )
        return replace(self, spans=moved, numbers=numbers)


def draw_numbers(rng: np.random.Generator, n: int, *, is_action: bool) -> dict[str, Numbers]:
    """``n`` tokens' numbers, as ordinary for the environment's tokens as for the policy's, rewards excepted."""
    values, logprobs = rng.normal(size=n), -rng.exponential(size=n) - 0.01
    return {
        "rewards": 0.1 * rng.normal(size=n) if is_action else np.zeros(n),
        "values": values,
        "old_values": values + 0.5 * rng.normal(size=n),
        "returns": values + rng.normal(size=n),
        "advantages": rng.normal(size=n),
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.2 * rng.normal(size=n),
        "ref_logprobs": logprobs + 0.2 * rng.normal(size=n),
        "entropy": rng.exponential(size=n),
    }


def draw_row(rng: np.random.Generator, group_id: int) -> Row:
    """A row of two to four turns, one of three of which ends with an observation instead of an action."""
    kinds: list[SpanKind] = ["prompt"]
    for _ in range(int(rng.integers(2, 5))):
        kinds.extend(("action", "observation"))
    if rng.random() < 2 / 3:
        kinds.pop()
    spans: list[Span] = []
    parts: list[dict[str, Numbers]] = []
    start = 0
    for kind in kinds:
        stop = start + int(rng.integers(1, 5))
        spans.append(Span(kind, start, stop))
        parts.append(draw_numbers(rng, stop - start, is_action=kind == "action"))
        start = stop
    numbers = {name: np.concatenate([part[name] for part in parts]) for name in NUMBERS}
    last_action = max(span.stop for span in spans if span.kind == "action") - 1
    numbers["rewards"][last_action] += rng.normal()
    return Row(tuple(spans), numbers, group_id)


def draw_batches(settings: Settings) -> Iterator[tuple[np.random.Generator, tuple[Row, ...]]]:
    """The rows of each batch, two or more, in ever more groups, with the generator to change them by."""
    for index in range(settings.num_batches):
        rng = np.random.default_rng([settings.seed, index])
        num_groups = (1 if settings.group_size > 1 else 2) + index // 2
        ids = rng.permutation(num_groups).repeat(settings.group_size).tolist()
        yield rng, tuple(draw_row(rng, group_id) for group_id in ids)


def collate(
    rows: Sequence[Row],
    rng: np.random.Generator,
    *,
    left: int = 0,
    right: int = 0,
    width: int = 0,
    align: Literal["left", "right"] = "left",
) -> TokenBatch:
    """``rows`` as numpy arrays of at least ``width`` columns, with ``left`` and ``right`` columns of padding added."""
    inner = max(width, *(row.length for row in rows))
    shape = (len(rows), left + inner + right)
    padding = draw_numbers(rng, shape[0] * shape[1], is_action=False)
    numbers = {name: padding[name].reshape(shape) for name in NUMBERS}
    masks = {kind: np.zeros(shape, dtype=np.bool_) for kind in ("prompt", "action", "observation")}
    for b, row in enumerate(rows):
        start = left if align == "left" else left + inner - row.length
        columns = slice(start, start + row.length)
        for name in NUMBERS:
            numbers[name][b, columns] = row.numbers[name]
        for kind, mask in masks.items():
            mask[b, columns] = row.mask(kind)
    return TokenBatch(
        **numbers,
        loss_mask=masks["action"],
        info_mask=masks["observation"],
        attention_mask=masks["prompt"] | masks["action"] | masks["observation"],
        row_rewards=np.array([row.numbers["rewards"].sum() for row in rows]),
        group_ids=np.array([row.group_id for row in rows], dtype=np.int64),
    )
