"""A solution of exercise 5, written from its page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def whiten(advantages: Floats, loss_mask: Bools) -> Floats:
    sampled = advantages[loss_mask]
    if len(sampled) < 2:
        return np.zeros(loss_mask.shape)
    centred = np.where(loss_mask, advantages - sampled.mean(), 0.0)
    return centred / np.sqrt(sampled.var(ddof=1) + 1e-8)


def token_weights(loss_mask: Bools, aggregation: str) -> Floats:
    if aggregation == "token-mean":
        return loss_mask / max(1, loss_mask.sum())
    lengths = np.maximum(1, loss_mask.sum(axis=1, keepdims=True))
    return loss_mask / lengths / len(loss_mask)


def clipped_loss(
    logprobs: Floats,
    old_logprobs: Floats,
    advantages: Floats,
    loss_mask: Bools,
    weights: Floats,
    clip_low: float,
    clip_high: float,
) -> tuple[float, Floats]:
    unclipped, clipped = _terms(logprobs, old_logprobs, advantages, loss_mask, clip_low, clip_high)
    weights = np.where(loss_mask, weights, 0.0)
    loss = -(weights * np.minimum(unclipped, clipped)).sum()
    return float(loss), np.where(unclipped <= clipped, -weights * unclipped, 0.0)


def clip_fraction(
    logprobs: Floats,
    old_logprobs: Floats,
    advantages: Floats,
    loss_mask: Bools,
    weights: Floats,
    clip_low: float,
    clip_high: float,
) -> float:
    unclipped, clipped = _terms(logprobs, old_logprobs, advantages, loss_mask, clip_low, clip_high)
    return float(weights[loss_mask & (clipped < unclipped)].sum())


def k3(logprobs: Floats, ref_logprobs: Floats) -> Floats:
    d = ref_logprobs - logprobs
    return np.expm1(d) - d


def _terms(
    logprobs: Floats, old_logprobs: Floats, advantages: Floats, loss_mask: Bools, clip_low: float, clip_high: float
) -> tuple[Floats, Floats]:
    """Both terms of the minimum, (B, T), 0 outside the mask."""
    # inf - inf is harmless here: where() takes the other branch.
    with np.errstate(invalid="ignore"):
        ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    return ratio * advantages, np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
