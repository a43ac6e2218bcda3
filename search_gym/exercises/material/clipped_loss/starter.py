"""Exercise 5: PPO's clipped loss and its gradient. The page says what each function computes; numpy is all you need.

Every (B, T) array is indexed by the token it talks about. ``loss_mask`` is True where the policy sampled the token, and
False where the environment wrote it (prompt, documents) or where there is only padding. Outside the mask any number
may stand, even NaN; it must not matter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def whiten(advantages: Floats, loss_mask: Bools) -> Floats:
    """``advantages`` (B, T) shifted and scaled to mean 0 and unbiased variance 1 over the sampled tokens; 0 elsewhere.

    (A - mean) / sqrt(variance + 1e-8), so that advantages which do not vary become 0. Fewer than two sampled tokens
    have variance 0.
    """
    raise NotImplementedError


def token_weights(loss_mask: Bools, aggregation: str) -> Floats:
    """What each token counts for in the loss, (B, T); 0 outside the mask. The weights add up to 1.

    "token-mean": every sampled token of the batch counts the same.
    "sequence-mean": every row counts 1 / B, shared equally by its sampled tokens. (A row without any has only zeros.)
    """
    raise NotImplementedError


def clipped_loss(
    logprobs: Floats,
    old_logprobs: Floats,
    advantages: Floats,
    loss_mask: Bools,
    weights: Floats,
    clip_low: float,
    clip_high: float,
) -> tuple[float, Floats]:
    """PPO's loss, to be minimised, and its derivative with respect to ``logprobs``, (B, T).

    The loss is minus the sum over sampled tokens of weight * min(ratio * A, clip(ratio) * A), where the ratio is
    pi / pi_old and clip holds it in [1 - clip_low, 1 + clip_high]. The derivative is 0 outside the mask.
    """
    raise NotImplementedError


def clip_fraction(
    logprobs: Floats,
    old_logprobs: Floats,
    advantages: Floats,
    loss_mask: Bools,
    weights: Floats,
    clip_low: float,
    clip_high: float,
) -> float:
    """The summed ``weights`` of those sampled tokens whose gradient the clip cuts to 0."""
    raise NotImplementedError


def k3(logprobs: Floats, ref_logprobs: Floats) -> Floats:
    """For each token, sampled by pi, the k3 estimate of KL(pi || pi_ref); same shape, never negative."""
    raise NotImplementedError
