"""Group advantages by the definition, one episode after the other, and those that are wrong in known ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _by_group(rewards: Floats, ids: Ints, of: Callable[[Sequence[float], float], float]) -> Floats:
    """``of`` the rewards of its group and its own reward, for each episode; a group of one keeps its reward."""
    found = np.empty(len(rewards))
    for i, (reward, group) in enumerate(zip(rewards, ids, strict=True)):
        members = [float(r) for r, other in zip(rewards, ids, strict=True) if other == group]
        found[i] = reward if len(members) == 1 else of(members, float(reward))
    return found


def _std(members: Sequence[float], ddof: int = 1) -> float:
    mean = math.fsum(members) / len(members)
    return math.sqrt(math.fsum((r - mean) ** 2 for r in members) / (len(members) - ddof))


def reference(
    rewards: Floats,
    ids: Ints,
    normalize: bool,
    leave_one_out: bool,
    *,
    ddof: int = 1,
    scale: Callable[[Sequence[float]], float] | None = None,
) -> Floats:
    def advantage(members: Sequence[float], own: float) -> float:
        total, n = math.fsum(members), len(members)
        if max(members) == min(members):
            return 0.0
        baseline = (total - own) / (n - 1) if leave_one_out else total / n
        spread = scale(members) if scale else _std(members, ddof) + 1e-6
        return (own - baseline) / (spread if normalize else 1.0)

    return _by_group(rewards, ids, advantage)


def _across(rewards: Floats, ids: Ints, normalize: bool, leave_one_out: bool) -> Floats:
    return reference(rewards, np.zeros_like(ids), normalize, leave_one_out)


def _std_of_batch(rewards: Floats, ids: Ints, normalize: bool, leave_one_out: bool) -> Floats:
    everything = rewards.tolist()
    spread = _std(everything) if len(everything) > 1 else 1.0
    return reference(rewards, ids, normalize, leave_one_out, scale=lambda members: spread + 1e-6)


def _single_is_zero(rewards: Floats, ids: Ints, normalize: bool, leave_one_out: bool) -> Floats:
    is_single = np.array([np.sum(ids == group) == 1 for group in ids])
    return np.where(is_single, 0.0, reference(rewards, ids, normalize, leave_one_out))


def _contiguous(rewards: Floats, ids: Ints, normalize: bool, leave_one_out: bool) -> Floats:
    """Equal groups that lie side by side, whatever the ids say."""
    count = len(np.unique(ids))
    if len(ids) % count:
        return np.full(len(ids), np.nan)
    return reference(rewards, np.repeat(np.arange(count), len(ids) // count), normalize, leave_one_out)


WRONG_ADVANTAGES: dict[str, Callable[..., Any]] = {
    "the mean of the whole batch. The baseline is that of the episode's own group: a batch mean rewards easy questions "
    "and punishes hard ones, whatever the policy did.": _across,
    "the standard deviation of the batch. Divide by that of the episode's own group.": _std_of_batch,
    "the variance with divisor G. The unbiased one has G - 1 (np.std has ddof=0 unless told otherwise).": partial(
        reference, ddof=0
    ),
    "1e-6 inside the root. It is added to the standard deviation: (r - mean) / (s + 1e-6).": partial(
        reference, scale=lambda members: math.sqrt(_std(members) ** 2 + 1e-6)
    ),
    "nothing is added to the standard deviation, so that a tied group will divide by zero. Add 1e-6 to it.": partial(
        reference, scale=_std
    ),
    "groups that lie side by side. Episodes of a group may be anywhere in the batch: use group_ids.": _contiguous,
    "a group of one has advantage 0. It keeps its reward, or nothing would be learned from it.": _single_is_zero,
    "the episode is part of its own baseline. Leave it out: subtract the mean of the others.": (
        lambda r, ids, normalize, leave_one_out: reference(r, ids, normalize, False)
    ),
    "leave-one-out although it was not asked for.": (
        lambda r, ids, normalize, leave_one_out: reference(r, ids, normalize, True)
    ),
    "a standard deviation that was not asked for: normalize_std is False.": (
        lambda r, ids, normalize, leave_one_out: reference(r, ids, True, leave_one_out)
    ),
    "the sign. An episode that did better than its group has a positive advantage.": (
        lambda r, ids, normalize, leave_one_out: (
            _by_group(reference(r, ids, normalize, leave_one_out), np.arange(len(r)), lambda members, own: own)
            * np.where([np.sum(ids == group) == 1 for group in ids], 1, -1)
        )
    ),
}
