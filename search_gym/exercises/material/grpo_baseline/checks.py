"""The hidden checks of exercise 6: group baselines against loops over groups, on random batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.exercises.checking import Caller, Check, show
from search_gym.exercises.material.grpo_baseline.advantages import WRONG_ADVANTAGES, reference
from search_gym.exercises.suspects import compare

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Run = Callable[[Caller, np.random.Generator], str | None]
ARGUMENTS = ("rewards", "group_ids", "normalize_std", "leave_one_out")
ALGORITHMS = ("grpo", "rloo", "dr_grpo")
CASES = 40


def make_groups(rng: np.random.Generator, *, least: int = 1, same_size: bool = False) -> tuple[Floats, Ints]:
    """Rewards and ids of one to four groups, shuffled; binary rewards, or any."""
    count = int(rng.integers(1, 5))
    size = int(rng.integers(max(2, least), 6))
    sizes = [size if same_size else int(rng.integers(least, 6)) for _ in range(count)]
    names = rng.choice(np.arange(-3, 40), size=count, replace=False)
    ids = rng.permutation(np.repeat(names, sizes)).astype(np.int64)
    is_binary = rng.random() < 0.5
    return (rng.integers(0, 2, ids.size).astype(float) if is_binary else rng.normal(0.3, 1.0, ids.size)), ids


def _advantages(normalize: bool, leave_one_out: bool, *, least: int = 2, same_size: bool = False) -> Run:
    """Without tied groups, which have a check of their own."""

    def run(call: Caller, rng: np.random.Generator) -> str | None:
        cases: list[tuple[Any, ...]] = []
        while len(cases) < CASES:
            rewards, ids = make_groups(rng, least=least, same_size=same_size)
            groups = [rewards[ids == group] for group in np.unique(ids)]
            if all(len(group) == 1 or np.ptp(group) > 0 for group in groups):
                cases.append((rewards, ids, normalize, leave_one_out))
        return compare(
            call,
            "group_advantages",
            cases,
            reference,
            arguments=ARGUMENTS,
            suspects=WRONG_ADVANTAGES,
            atol=1e-7,
        )

    return run


def _ties(call: Caller, rng: np.random.Generator) -> str | None:
    cases: list[tuple[Any, ...]] = []
    for _ in range(CASES):
        size = int(rng.integers(2, 9))
        reward = float(rng.choice([0.0, 1.0, 0.1, 0.3, 1 / 3, 0.7, 1e-3]))
        rewards, ids = np.full(size + 2, reward), np.array([5] * size + [6, 6])
        rewards[-1] += 1.0
        cases.append((rewards, ids, True, bool(rng.integers(2))))
    for case, got in zip(cases, call.many("group_advantages", cases), strict=True):
        told = f"group_advantages(rewards={show(case[0])}, group_ids={show(case[1])}, True, {case[3]})"
        tied = np.asarray(got, dtype=float)[:-2] if np.shape(got) == np.shape(case[0]) else None
        if tied is None or not np.isfinite(tied).all():
            return (
                f"{told}: expected 0 in the tied group 5, got {show(got)}. Did you divide by zero? The standard "
                "deviation of a tied group is 0; add 1e-6 to it."
            )
        if np.abs(tied).max() > 1e-6:
            return (
                f"{told}: expected 0 in the tied group 5, got {show(tied)}. Rounding leaves differences and a standard "
                "deviation of about 1e-17; divided by each other they are as large as a real advantage. Add 1e-6 to "
                "the standard deviation."
            )
    return None


def _own_reward(call: Caller, rng: np.random.Generator) -> str | None:
    """RLOO's baseline must not move with the episode's own reward."""
    cases: list[tuple[Any, ...]] = []
    changes = []
    for _ in range(CASES):
        rewards, ids = make_groups(rng, least=2)
        which, change = int(rng.integers(len(ids))), float(rng.uniform(0.5, 2))
        other = rewards.copy()
        other[which] += change
        cases += [(rewards, ids, False, True), (other, ids, False, True)]
        changes.append((which, change))
    values = call.many("group_advantages", cases)
    for number, (which, change) in enumerate(changes):
        before, after = (np.asarray(values[2 * number + i], dtype=float) for i in range(2))
        rewards, ids = cases[2 * number][:2]
        if before.shape != rewards.shape or after.shape != rewards.shape:
            return f"group_advantages: expected shape {rewards.shape}, got {before.shape} and {after.shape}"
        moved = after[which] - before[which]
        if not abs(moved - change) < 1e-7:
            return (
                f"group_advantages(rewards={show(rewards)}, group_ids={show(ids)}, False, True): when the reward of "
                f"episode {which} rises by {change:.4g}, expected its advantage to rise by as much, got {moved:.4g}. "
                "So its baseline depends on what it earned itself, and the gradient is biased: the episode is part of "
                "its own baseline. Take the mean of the others."
            )
    return None


def _mask(rng: np.random.Generator, rows: int) -> npt.NDArray[np.bool_]:
    return rng.random((rows, int(rng.integers(2, 7)))) < 0.6


def _spread_reference(advantages: Floats, mask: Any) -> Floats:
    return np.array([[a if sampled else 0.0 for sampled in row] for a, row in zip(advantages, mask, strict=True)])


def _spread(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [(rng.normal(size=rows), _mask(rng, rows)) for rows in rng.integers(1, 5, CASES).tolist()]
    suspects: dict[str, Callable[..., Any]] = {
        "the advantage on every token. Tokens of documents and padding have none.": lambda a, mask: np.repeat(
            a[:, None], mask.shape[1], axis=1
        ),
        "an advantage that is divided among the tokens. Each token gets all of it; weights come later.": (
            lambda a, mask: _spread_reference(a / np.maximum(1, mask.sum(axis=1)), mask)
        ),
        "only the last sampled token. A whole episode earned it, in all of its turns.": lambda a, mask: (
            _spread_reference(a, mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] == 1))
        ),
    }
    return compare(call, "spread", cases, _spread_reference, arguments=("advantages", "loss_mask"), suspects=suspects)


def _zero_variance(call: Caller, rng: np.random.Generator) -> str | None:
    def share(rewards: Floats, ids: Ints) -> float:
        groups = [[r for r, other in zip(rewards, ids, strict=True) if other == group] for group in set(ids.tolist())]
        return sum(max(group) == min(group) for group in groups) / len(groups)

    def episodes(rewards: Floats, ids: Ints) -> float:
        return float(np.mean([np.ptp(rewards[ids == group]) == 0 for group in ids]))

    def failures(rewards: Floats, ids: Ints) -> float:
        return float(np.mean([rewards[ids == group].max() == 0 for group in np.unique(ids)]))

    cases = []
    for number in range(CASES):
        rewards, ids = make_groups(rng)
        cases.append((rewards.round() if number % 2 else np.where(rewards > 0, 0.1, 0.7), ids))
    suspects: dict[str, Callable[..., Any]] = {
        "the share of episodes. Count groups.": episodes,
        "only groups that earned nothing. A group in which everything is right teaches nothing either.": failures,
        "a standard deviation that has to be exactly 0. Rounding makes it 1e-17 for equal rewards: compare the largest "
        "with the smallest.": lambda r, ids: float(np.mean([np.std(r[ids == group]) == 0 for group in np.unique(ids)])),
    }
    return compare(call, "zero_variance_groups", cases, share, arguments=("rewards", "group_ids"), suspects=suspects)


def coefficients(
    rewards: Floats, ids: Ints, mask: Any, algorithm: str, max_tokens: int, *, length: str = "sampled"
) -> Floats:
    advantages = reference(rewards, ids, algorithm == "grpo", algorithm == "rloo")
    rows, columns = mask.shape
    found = np.zeros(mask.shape)
    for row in range(rows):
        sampled = columns if length == "padded" else int(mask[row].sum())
        for t in range(columns):
            if mask[row, t]:
                total = mask.size if length == "padded" else mask.sum()
                weight = {"grpo": 1 / (rows * sampled), "rloo": 1 / total, "dr_grpo": 1 / (rows * max_tokens)}
                found[row, t] = advantages[row] * weight[algorithm]
    return found


def _check_coefficients(algorithm: str) -> Run:
    def exchanged(rewards: Floats, ids: Ints, mask: Any, algorithm: str, max_tokens: int) -> Floats:
        weights = np.abs(coefficients(np.ones(len(ids)), np.arange(len(ids)), mask, algorithm, max_tokens))
        other = reference(rewards, ids, algorithm != "grpo", False)
        return other[:, None] * weights

    def token_mean(rewards: Floats, ids: Ints, mask: Any, algorithm: str, max_tokens: int) -> Floats:
        return reference(rewards, ids, algorithm == "grpo", algorithm == "rloo")[:, None] * mask / mask.sum()

    def run(call: Caller, rng: np.random.Generator) -> str | None:
        cases = []
        while len(cases) < CASES:
            rewards, ids = make_groups(rng, least=2)
            mask = _mask(rng, len(ids))
            if mask.any():
                cases.append((rewards, ids, mask, algorithm, int(rng.integers(3, 12))))
        suspects: dict[str, Callable[..., Any]] = {
            "padding and documents counted in the length. n is the number of sampled tokens.": partial(
                coefficients, length="padded"
            ),
            "the advantages of another algorithm: GRPO divides by the standard deviation, RLOO and Dr. GRPO do not.": (
                exchanged
            ),
            f"the mean over tokens, which is not what {algorithm} does. See the table on the page.": token_mean,
            "the sign. A coefficient is positive where the token is to become likelier.": (
                lambda *case: -coefficients(*case)
            ),
        }
        return compare(
            call,
            "coefficients",
            cases,
            coefficients,
            arguments=("rewards", "group_ids", "loss_mask", "algorithm", "max_tokens"),
            suspects=suspects,
        )

    return run


CHECKS = (
    Check(
        "centred on the group",
        1,
        "The baseline has to be that of the question: with any other, the policy is rewarded for being asked something "
        "easy.",
        _advantages(False, False, same_size=True),
    ),
    Check(
        "divided by the standard deviation",
        1,
        "This is GRPO as published and as most libraries have it; a wrong divisor is a wrong learning rate, another "
        "one for every group size.",
        _advantages(True, False),
    ),
    Check(
        "leave one out",
        1,
        "A baseline that does not depend on the episode it is for leaves the gradient unbiased.",
        _advantages(False, True),
    ),
    Check(
        "the baseline ignores the episode's own reward",
        1,
        "An episode that is part of its own baseline takes back a part of its own reward: a third of it in groups of "
        "three.",
        _own_reward,
    ),
    Check(
        "groups of one",
        0.5,
        "Filters and lost episodes leave groups of one behind. As NaN, a single one of them ends the run.",
        _advantages(True, True, least=1),
    ),
    Check(
        "ties teach nothing",
        1,
        "Late in training most groups are tied. A division by zero there is NaN in every weight of the model; rounding "
        "noise there is a random step of full size.",
        _ties,
    ),
    Check(
        "zero-variance groups",
        1,
        "It tells a run that has nothing left to learn from apart from one that does not learn.",
        _zero_variance,
    ),
    Check(
        "from episodes to tokens",
        0.5,
        "The documents between the turns were not the policy's doing.",
        _spread,
    ),
    *(
        Check(
            f"coefficients of {algorithm}",
            1,
            "The three algorithms differ in nothing but these numbers; with the wrong weight, long wrong answers are "
            "punished less than short ones, or more.",
            _check_coefficients(algorithm),
        )
        for algorithm in ALGORITHMS
    ),
)
