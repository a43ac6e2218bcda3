"""Exercise 6: group baselines. The page says what each function computes; numpy is all you need.

B episodes; those with the same number in ``group_ids`` answer the same question. (B, T) arrays are indexed by token,
and ``loss_mask`` is True where the policy sampled the token.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def group_advantages(
    rewards: Floats, group_ids: Ints, normalize_std: bool = True, leave_one_out: bool = False
) -> Floats:
    """How much better each of the (B,) episodes did than its group; (B,).

    The baseline is the mean of the group, or of the others in it with ``leave_one_out``. With ``normalize_std`` the
    difference is divided by the group's standard deviation (divisor G - 1) plus 1e-6. A group of one keeps its reward.
    """
    raise NotImplementedError


def spread(advantages: Floats, loss_mask: Bools) -> Floats:
    """The advantage (B,) of each episode on all of its sampled tokens, 0 elsewhere; (B, T)."""
    raise NotImplementedError


def zero_variance_groups(rewards: Floats, group_ids: Ints) -> float:
    """The share of groups in which all episodes earned the same, between 0 and 1."""
    raise NotImplementedError


def coefficients(rewards: Floats, group_ids: Ints, loss_mask: Bools, algorithm: str, max_tokens: int) -> Floats:
    """What the gradient of each token's log-probability is multiplied with in the first step of a round; (B, T).

    The token's advantage times its weight, positive where the token is to become likelier. ``algorithm`` is "grpo",
    "rloo" or "dr_grpo"; ``max_tokens`` is the constant L of the last one.
    """
    raise NotImplementedError
