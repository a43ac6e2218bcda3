"""Self-RAG's critique scores (Asai et al. 2023, arXiv 2310.11511, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search_gym.completion import Completion, CompletionError
from search_gym.errors import OptionError

UTILITIES = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""What the ratings 1 to 5 of ISUSE are worth."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each critique counts, and when to retrieve; the defaults are the paper's."""

    relevance: float = 1.0
    """Weight of ISREL: whether the passage says something about the question."""
    support: float = 1.0
    """Weight of ISSUP: whether the passage supports the segment."""
    utility: float = 0.5
    """Weight of ISUSE: how useful the segment is."""
    threshold: float = 0.2
    """Retrieve when the probability of Retrieve = yes, among yes and no, is above this."""

    def __post_init__(self) -> None:
        """Raises OptionError: a threshold that is no probability."""
        if not 0 <= self.threshold <= 1:
            raise OptionError(f"expected a threshold in [0, 1], got {self.threshold}")


def normalised(logprobs: Sequence[float]) -> tuple[float, ...]:
    """The probabilities of options that are ``logprobs`` (nats) likely, divided by their sum.

    Raises:
        OptionError: none of them has a probability.
    """
    largest = max(logprobs)
    if largest == -math.inf:
        raise OptionError(f"expected an option that has a probability, got {tuple(logprobs)}")
    values = [math.exp(logprob - largest) for logprob in logprobs]
    return tuple(value / sum(values) for value in values)


def relevance_score(logprobs: Sequence[float]) -> float:
    """s(ISREL) in [0, 1], from the log-probabilities of relevant and irrelevant."""
    relevant, _ = normalised(logprobs)
    return relevant


def support_score(logprobs: Sequence[float]) -> float:
    """s(ISSUP) in [0, 1], from those of fully, partially and not supported: p(fully) + p(partially) / 2."""
    fully, partially, _ = normalised(logprobs)
    return fully + 0.5 * partially


def utility_score(logprobs: Sequence[float]) -> float:
    """s(ISUSE) in [-1, 1], from those of the ratings 1 to 5: their worth (`UTILITIES`), weighted by probability."""
    return sum(p * worth for p, worth in zip(normalised(logprobs), UTILITIES, strict=True))


def segment_score(mean_logprob: float, relevance: float, support: float, utility: float, weights: Weights) -> float:
    """f = p + w_rel s(ISREL) + w_sup s(ISSUP) + w_use s(ISUSE) (equations 3 and 4).

    p, the probability of the segment, is the geometric mean over its tokens, exp(``mean_logprob``), as in the authors'
    code, so that long segments can be compared with short ones.
    """
    critique = weights.relevance * relevance + weights.support * support + weights.utility * utility
    return math.exp(mean_logprob) + critique


def segment_scores(
    said: Sequence[Completion],
    isrel: Sequence[Sequence[float]],
    issup: Sequence[Sequence[float]],
    isuse: Sequence[Sequence[float]],
    weights: Weights,
) -> list[float]:
    """`segment_score` of each of the segments ``said``, from the log-probabilities of its reflections.

    Raises:
        CompletionError: a segment came without its log-probability.
    """
    scores = []
    for completion, rel, sup, use in zip(said, isrel, issup, isuse, strict=True):
        if completion.mean_logprob is None:
            raise CompletionError("expected a segment with its log-probability, got none; do: ask with logprobs=True")
        critiques = relevance_score(rel), support_score(sup), utility_score(use)
        scores.append(segment_score(completion.mean_logprob, *critiques, weights))
    return scores
