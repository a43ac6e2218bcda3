"""Tokens from logits, and the random numbers that choose them: what all engines have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.policy import logprobs_at, tempered
from search_gym.errors import OptionError


class Randomness:
    """The random numbers of turns, which depend on the seed, the episode's number and how many turns it has had."""

    def __init__(self, num_slots: int, seed: int, first_episode: int) -> None:
        self._seed = seed
        self._episodes = list(range(first_episode, first_episode + num_slots))
        self._num_turns = [0] * num_slots

    def place(self, slots: Sequence[int], episodes: Sequence[int]) -> None:
        """Let ``slots`` hold the episodes of these numbers, at their beginning."""
        for slot, episode in zip(slots, episodes, strict=True):
            self._episodes[slot], self._num_turns[slot] = episode, 0

    def draw(self, slot: int, length: int) -> npt.NDArray[np.float64]:
        """Numbers (``length``,) in [0, 1) for the next turn in ``slot``; a longer draw begins with a shorter one."""
        key = (self._seed, self._episodes[slot], self._num_turns[slot])
        self._num_turns[slot] += 1
        return np.random.default_rng(key).random(length)


def check_top_p(top_p: float) -> None:
    """Raises OptionError: it is not above 0 and at most 1."""
    if not 0 < top_p <= 1:
        raise OptionError(f"expected top_p above 0 and at most 1, got {top_p}; do: use 1.0 to leave it out")


def choose(
    logits: Tensor, uniforms: Tensor | None, temperature: float, vocab_size: int, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Tokens (n,) and log-probabilities (n,) for ``logits`` (n, V): distribution functions inverted at ``uniforms``.

    Without ``uniforms``, the most probable tokens. Ids from ``vocab_size`` on are never chosen; log-probabilities are
    those of the whole distribution, whatever ``top_p`` leaves out.
    """
    scores = tempered(logits, temperature, vocab_size)
    if uniforms is None:
        ids = scores.argmax(dim=-1)
    else:
        cumulative = nucleus(scores.softmax(dim=-1), top_p).cumsum(dim=-1, dtype=torch.float64)
        points = uniforms[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, points, right=True).squeeze(-1).clamp_max(scores.shape[-1] - 1)
    return ids, logprobs_at(scores, ids)


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """``probs`` (n, V) with 0 in place of all but the fewest, most probable tokens that hold ``top_p`` of each row."""
    if top_p == 1.0:
        return probs
    largest, ids = probs.sort(dim=-1, descending=True, stable=True)
    is_kept = largest.cumsum(dim=-1) - largest < top_p
    return torch.zeros_like(probs).scatter(-1, ids, largest * is_kept)
