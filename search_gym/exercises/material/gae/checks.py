"""The checks of exercise 4, and a reference that follows the definition token by token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from search_gym.exercises.checking import Caller, Check, show, unlike
from search_gym.exercises.suspects import Case, compare

Array = npt.NDArray[np.float64]
Pair = tuple[Array, Array]
ARGUMENTS = ("rewards", "values", "loss_mask", "gamma", "lam")
RESULTS = ("advantages", "returns")


def reference(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    """The definition: a loop over each row's sampled tokens, from the last."""
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_value = next_advantage = 0.0
        for t in np.flatnonzero(loss_mask[row])[::-1]:
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            next_advantage = delta + gamma * lam * next_advantage
            next_value = values[row, t]
            advantages[row, t], returns[row, t] = next_advantage, next_advantage + next_value
    return advantages, returns


def _every_column(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    everything = np.arange(rewards.shape[1]) <= np.where(loss_mask, np.arange(rewards.shape[1]), -1).max(1)[:, None]
    advantages, returns = reference(rewards, values, everything, gamma, lam)
    return advantages * loss_mask, returns * loss_mask


def _whole_rows(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    advantages, returns = reference(rewards, values, np.ones_like(loss_mask), gamma, lam)
    return advantages * loss_mask, returns * loss_mask


def _zeros_between(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    return _every_column(np.where(loss_mask, rewards, 0), np.where(loss_mask, values, 0), loss_mask, gamma, lam)


def _turn_by_turn(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    turn = np.cumsum(np.diff(loss_mask.astype(int), axis=1, prepend=0) == 1, axis=1)
    for number in range(1, turn.max(initial=0) + 1):
        part = reference(rewards, values, loss_mask & (turn == number), gamma, lam)
        advantages, returns = advantages + part[0], returns + part[1]
    return advantages, returns


def _no_lambda(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    return reference(rewards, values, loss_mask, gamma, 1.0)


def _lambda_alone(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    return reference(rewards, values, loss_mask, gamma, lam / gamma if gamma else lam)


def _no_gamma(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    return reference(rewards, values, loss_mask, 1.0, gamma * lam)


def _returns_of_rewards(
    rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float
) -> Pair:
    return reference(rewards, values, loss_mask, gamma, lam)[0], reference(rewards, values, loss_mask, gamma, 1.0)[1]


def _bootstraps(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    changed = rewards.copy()
    for row in range(len(rewards)):
        sampled = np.flatnonzero(loss_mask[row])
        if len(sampled):
            changed[row, sampled[-1]] += gamma * values[row, sampled[-1]]
    return reference(changed, values, loss_mask, gamma, lam)


def _next_column(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    shifted = np.pad(values, ((0, 0), (0, 1)))[:, 1:]
    changed = rewards.copy()
    for row in range(len(rewards)):
        sampled = np.flatnonzero(loss_mask[row])
        right = np.append(values[row, sampled[1:]], 0.0) if len(sampled) else values[row, sampled]
        changed[row, sampled] += gamma * (shifted[row, sampled] - right)
    return reference(changed, values, loss_mask, gamma, lam)


def _carries_over(rewards: Array, values: Array, loss_mask: npt.NDArray[np.bool_], gamma: float, lam: float) -> Pair:
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    r, v = (x[::-1].reshape(1, -1) for x in (rewards, values))
    mask = loss_mask[::-1].reshape(1, -1)
    for whole, part in zip((advantages, returns), reference(r, v, mask, gamma, lam), strict=True):
        whole[:] = part.reshape(rewards.shape)[::-1]
    return advantages, returns


SUSPECTS: dict[str, Callable[..., Pair]] = {
    "lambda was left out: A_{k+1} is multiplied by gamma * lam, not by gamma.": _no_lambda,
    "gamma was left out beside lambda: A_{k+1} is multiplied by gamma * lam, not by lam.": _lambda_alone,
    "gamma was left out beside the next value: delta_k = r_k + gamma V_{k+1} - V_k.": _no_gamma,
    "the last token bootstraps from a value, but the episode has ended: V_n = 0.": _bootstraps,
    "the returns were discounted sums of rewards; the target of the value head is A_k + V_k.": _returns_of_rewards,
    "the value after a turn's last token was read from the next column, which the environment wrote. V_{k+1} is the "
    "next sampled token's.": _next_column,
    "a row begins with what the row before it left in a variable. Set both to 0 for each row.": _carries_over,
    "each turn was taken for an episode, so that what a search earns later never reaches it. The next sampled token "
    "after a turn's last one is the first of the next turn.": _turn_by_turn,
    "the recursion also stops at tokens of the environment, with their values and rewards. Jump over them.": (
        _every_column
    ),
    "the recursion runs through all columns, the environment's and the padding with their values and rewards. Jump "
    "over what was not sampled.": _whole_rows,
    "tokens of the environment count as steps with value 0. Jump over them: they take no time.": _zeros_between,
}


def draw(rng: np.random.Generator, turns: int, *, rows: int = 3, gamma: float | None = None) -> Case:
    """A batch in which every row has up to ``turns`` turns with documents in between, a prompt, and padding."""
    masks = []
    for _ in range(rows):
        row = [False] * int(rng.integers(0, 3))
        for turn in range(int(rng.integers(1, turns + 1))):
            row += [False] * int(rng.integers(1, 4)) * (turn > 0) + [True] * int(rng.integers(1, 4))
        masks.append(row)
    width = max(map(len, masks)) + int(rng.integers(0, 3))
    loss_mask = np.array([row + [False] * (width - len(row)) for row in masks])
    rewards, values = rng.normal(size=loss_mask.shape).round(2), rng.normal(size=loss_mask.shape).round(2)
    drawn = round(float(rng.uniform(0.3, 0.9)), 2) if gamma is None else gamma
    return rewards, values, loss_mask, drawn, round(float(rng.uniform(0.2, 0.9)), 2)


def _compare(call: Caller, cases: list[Case]) -> str | None:
    smallest_first = sorted(cases, key=lambda case: case[0].size)
    return compare(call, "gae", smallest_first, reference, arguments=ARGUMENTS, results=RESULTS, suspects=SUSPECTS)


def _agree(call: Caller, plain: list[Case], other: list[Case], cut: Callable[[Array], Array], told: str) -> str | None:
    """Whether the student's results for ``plain`` are those for ``other``, of which ``cut`` takes the same part."""
    values = call.many("gae", [*plain, *other])
    if not any(np.any(np.asarray(got[0])) for got in values):
        return "all advantages are 0, whatever the rewards are"
    for case, mine, theirs in zip(plain, values[: len(plain)], values[len(plain) :], strict=True):
        for name, expected, got in zip(RESULTS, mine, theirs, strict=True):
            if problem := unlike(cut(np.asarray(got)), expected):
                return f"{name}, loss_mask={show(case[2])}: {told}: {problem}"
    return None


def _one_turn(call: Caller, rng: np.random.Generator) -> str | None:
    cases = []
    for _ in range(40):
        rewards, values, _, gamma, lam = draw(rng, 1, rows=1)
        cases.append((rewards, values, np.ones(rewards.shape, dtype=bool), gamma, lam))
    return _compare(call, cases)


def _limits(call: Caller, rng: np.random.Generator) -> str | None:
    return _compare(
        call, [(*draw(rng, 1, rows=1)[:3], gamma, lam) for gamma in (0.0, 0.7, 1.0) for lam in (0.0, 0.6, 1.0)]
    )


def _many_turns(call: Caller, rng: np.random.Generator) -> str | None:
    return _compare(call, [draw(rng, 4, rows=int(rng.integers(1, 4))) for _ in range(60)])


def _what_the_environment_wrote(call: Caller, rng: np.random.Generator) -> str | None:
    for label, filler in (("1e6", 1e6), ("NaN", np.nan), ("infinity", np.inf)):
        cases = [draw(rng, 4, rows=int(rng.integers(1, 3))) for _ in range(20)]
        zeros, filled = (
            [(np.where(mask, r, x), np.where(mask, v, x), mask, gamma, lam) for r, v, mask, gamma, lam in cases]
            for x in (0.0, filler)
        )
        problem = _agree(call, zeros, filled, lambda x: x, f"with {label} in place of 0 outside of it")
        if problem:
            hint = " A product with the mask keeps NaN, because NaN * 0 is NaN: use np.where(loss_mask, x, 0.0)."
            return f"{problem}. What lies outside the mask must not matter.{hint if 'got nan' in problem else ''}"
    return None


def _padding_and_rows(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [draw(rng, 3, rows=2) for _ in range(20)]
    wider, alone = [], []
    for rewards, values, mask, gamma, lam in cases:
        wider.append((*(np.pad(x, ((0, 1), (0, 4))) for x in (rewards, values, mask)), gamma, lam))
        alone.append((rewards[1:], values[1:], mask[1:], gamma, lam))
    problem = _agree(call, cases, wider, lambda x: x[:-1, :-4], "with 4 more columns and a row, none of them sampled")
    if problem:
        return f"{problem}. Where does your recursion begin in a row? At its last sampled token, with zeros."
    problem = _agree(call, alone, cases, lambda x: x[1:], "with another row above")
    if problem:
        return (
            f"{problem}. Does a row begin with what another row left in a variable? Set them to 0 for each row. Or was "
            "something computed over the batch, a mean for example?"
        )
    return None


CHECKS = (
    Check("one turn", 2, "Every advantage of the run rests on this recursion.", _one_turn),
    Check(
        "gamma and lambda at their limits",
        1,
        "Lambda trades bias for variance between the one-step error (0) and the whole return (1); training uses both.",
        _limits,
    ),
    Check(
        "many turns",
        3,
        "The answer's reward is the only one there is. It has to reach the search that made the answer possible, and "
        "as much of it, however long the documents are.",
        _many_turns,
    ),
    Check(
        "what the environment wrote",
        2,
        "The value head is not trained on retrieved tokens: what it says there is noise, which would reach the policy.",
        _what_the_environment_wrote,
    ),
    Check(
        "padding and rows",
        2,
        "What a rollout learns may not depend on the others that happen to share its batch.",
        _padding_and_rows,
    ),
)
