"""Losses that are wrong in known ways, by what a student who wrote one should be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _variant(
    term: Callable[[Floats, Floats, Floats, float, float], tuple[Floats, Floats]],
    *,
    weigh: Callable[[Floats, Any], Floats] = lambda weights, mask: weights,
) -> Callable[..., tuple[float, Floats]]:
    """A wrong loss: ``term`` gives what each token adds to the objective, and the derivative of that."""

    def wrong(
        logprobs: Floats, old: Floats, advantages: Floats, mask: Any, weights: Floats, low: float, high: float
    ) -> tuple[float, Floats]:
        log_ratio, advantage = np.where(mask, logprobs - old, 0.0), np.where(mask, advantages, 0.0)
        value, slope = term(log_ratio, np.exp(log_ratio), advantage, low, high)
        weight = weigh(weights, mask)
        return -float((weight * np.where(mask, value, 0)).sum()), -weight * np.where(mask, slope, 0)

    return wrong


def _right(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    clipped = np.clip(ratio, 1 - low, 1 + high)
    return np.minimum(ratio * a, clipped * a), np.where(ratio * a <= clipped * a, ratio * a, 0.0)


def _no_min(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    inside = (ratio >= 1 - low) & (ratio <= 1 + high)
    return np.clip(ratio, 1 - low, 1 + high) * a, np.where(inside, ratio * a, 0.0)


def _maximum(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    clipped = np.clip(ratio, 1 - low, 1 + high)
    return np.maximum(ratio * a, clipped * a), np.where(ratio * a >= clipped * a, ratio * a, 0.0)


def _inverted(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    value, slope = _right(-log_ratio, 1 / ratio, a, low, high)
    return value, -slope


def _negated(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    value, slope = _right(log_ratio, ratio, a, low, high)
    return -value, -slope


def _swapped(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    return _right(log_ratio, ratio, a, high, low)


def _symmetric(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    return _right(log_ratio, ratio, a, low, low)


def _log_clip(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    clipped = np.exp(np.clip(log_ratio, -low, high))
    return np.minimum(ratio * a, clipped * a), np.where(ratio * a <= clipped * a, ratio * a, 0.0)


def _never_cut(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    return _right(log_ratio, ratio, a, low, high)[0], ratio * a


def _by_ratio(log_ratio: Floats, ratio: Floats, a: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    value, slope = _right(log_ratio, ratio, a, low, high)
    return value, slope / ratio


WRONG_LOSSES = {
    "clip without min. The clipped term alone has no slope outside the interval, so a bad token that has become "
    "likelier (A < 0, ratio > 1 + clip_high) could never be made rarer again. Take the minimum of both terms.": (
        _variant(_no_min)
    ),
    "the maximum in the place of the minimum. PPO takes the more pessimistic of the two terms of the objective; only "
    "when both are negated, as in a loss, is that a maximum.": _variant(_maximum),
    "the ratio inverted. It is pi / pi_old = exp(logprobs - old_logprobs).": _variant(_inverted),
    "the sign. The objective is maximised and a loss is minimised, so the loss is minus the weighted sum.": (
        _variant(_negated)
    ),
    "clip_low and clip_high exchanged. The interval is [1 - clip_low, 1 + clip_high].": _variant(_swapped),
    "one clip for both sides. The interval is [1 - clip_low, 1 + clip_high], and the two may differ.": (
        _variant(_symmetric)
    ),
    "the clip of the logarithm of the ratio. Clip the ratio itself.": _variant(_log_clip),
    "the mean over padding and documents too. Use the weights as they are: they are 0 outside the mask, and add up to "
    "1.": _variant(_right, weigh=lambda weights, mask: np.full(mask.shape, 1 / mask.size)),
    "the plain mean over sampled tokens. Use the weights: they may be those of a mean over sequences.": (
        _variant(_right, weigh=lambda weights, mask: mask / mask.sum())
    ),
    "a gradient that the clip never cuts. Where the clipped term is the smaller one, the loss does not depend on "
    "logprobs at all, and the derivative is 0.": _variant(_never_cut),
    "the derivative by the ratio. By the chain rule d ratio / d logprobs = ratio.": _variant(_by_ratio),
}
