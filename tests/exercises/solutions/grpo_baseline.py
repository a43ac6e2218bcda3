"""A solution of exercise 6, written from its page."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def group_advantages(
    rewards: Floats, group_ids: Ints, normalize_std: bool = True, leave_one_out: bool = False
) -> Floats:
    _, group, size = np.unique(group_ids, return_inverse=True, return_counts=True)
    n = size[group]
    others = np.maximum(1, n - 1)
    centred = rewards - np.bincount(group, weights=rewards)[group] / n
    advantages = centred * n / others if leave_one_out else centred
    if normalize_std:
        advantages = advantages / (np.sqrt(np.bincount(group, weights=centred**2)[group] / others) + 1e-6)
    return np.where(n == 1, rewards, advantages)


def spread(advantages: Floats, loss_mask: Bools) -> Floats:
    return np.where(loss_mask, advantages[:, None], 0.0)


def zero_variance_groups(rewards: Floats, group_ids: Ints) -> float:
    return float(np.mean([np.ptp(rewards[group_ids == group]) == 0 for group in np.unique(group_ids)]))


def coefficients(rewards: Floats, group_ids: Ints, loss_mask: Bools, algorithm: str, max_tokens: int) -> Floats:
    rows = len(rewards)
    if algorithm == "grpo":
        weights = 1 / (rows * np.maximum(1, loss_mask.sum(axis=1, keepdims=True)))
    elif algorithm == "rloo":
        weights = 1 / loss_mask.sum()
    else:
        weights = 1 / (rows * max_tokens)
    advantages = group_advantages(rewards, group_ids, algorithm == "grpo", algorithm == "rloo")
    return spread(advantages, loss_mask) * weights
