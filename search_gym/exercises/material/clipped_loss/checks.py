"""The hidden checks of exercise 5: every function against a loop over tokens, on random batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.exercises.checking import Caller, Check, show
from search_gym.exercises.material.clipped_loss.wrong_losses import WRONG_LOSSES
from search_gym.exercises.suspects import compare

Floats = npt.NDArray[np.float64]
Case = tuple[Any, ...]
ARGUMENTS = ("logprobs", "old_logprobs", "advantages", "loss_mask", "weights", "clip_low", "clip_high")
RESULTS = ("loss", "gradient")
CASES = 40


def _loss_mask(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A (B, T) mask of at most 3 by 6 with at least two sampled tokens, some in each of the rows or in all but one."""
    while True:
        mask = rng.random((rng.integers(1, 4), rng.integers(2, 7))) < 0.6
        if mask.sum() >= 2:
            return mask


def _weights(mask: npt.NDArray[np.bool_], aggregation: str) -> Floats:
    weights = np.zeros(mask.shape)
    for row in range(len(mask)):
        for t in range(mask.shape[1]):
            if mask[row, t]:
                of_row = sum(mask[row])
                weights[row, t] = 1 / mask.sum() if aggregation == "token-mean" else 1 / (len(mask) * of_row)
    return weights


def make_batch(rng: np.random.Generator, *, outside: str = "numbers", on_policy: bool = False) -> Case:
    """Arguments of `clipped_loss`; outside the mask stand plausible numbers, or NaN and infinities."""
    mask = _loss_mask(rng)
    old = rng.normal(-1.5, 0.5, mask.shape)
    logprobs = old.copy() if on_policy else old + rng.normal(0.0, 0.4, mask.shape)
    advantages = rng.normal(size=mask.shape) * rng.uniform(0.5, 3)
    if outside != "numbers":
        for array in (logprobs, old, advantages):
            array[~mask] = rng.choice([np.nan, np.inf, -np.inf, 1e6], size=int((~mask).sum()))
    weights = _weights(mask, ("token-mean", "sequence-mean")[rng.integers(2)])
    clips = (0.2, 0.2) if rng.random() < 0.5 else (float(rng.uniform(0.05, 0.3)), float(rng.uniform(0.1, 0.6)))
    return logprobs, old, advantages, mask, weights, *clips


def loss_of(
    logprobs: Floats, old: Floats, advantages: Floats, mask: Any, weights: Floats, low: float, high: float
) -> tuple[float, Floats]:
    loss, gradient = 0.0, np.zeros(mask.shape)
    for place in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(logprobs[place] - old[place])
        advantage, weight = advantages[place], weights[place]
        clipped = min(max(ratio, 1 - low), 1 + high)
        loss -= weight * min(ratio * advantage, clipped * advantage)
        if ratio * advantage <= clipped * advantage:
            gradient[place] = -weight * ratio * advantage
    return float(loss), gradient


def clip_fraction_of(
    logprobs: Floats, old: Floats, advantages: Floats, mask: Any, weights: Floats, low: float, high: float
) -> float:
    total = 0.0
    for place in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(logprobs[place] - old[place])
        good, bad = advantages[place] > 0, advantages[place] < 0
        total += weights[place] * ((good and ratio > 1 + high) or (bad and ratio < 1 - low))
    return float(total)


def _loss_check(outside: str = "numbers", on_policy: bool = False) -> Callable[[Caller, np.random.Generator], Any]:
    def run(call: Caller, rng: np.random.Generator) -> str | None:
        cases = [make_batch(rng, outside=outside, on_policy=on_policy) for _ in range(CASES)]
        return compare(
            call, "clipped_loss", cases, loss_of, arguments=ARGUMENTS, suspects=WRONG_LOSSES, results=RESULTS
        )

    return run


def _garbage(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [make_batch(rng, outside="garbage") for _ in range(CASES)]
    problem = compare(call, "clipped_loss", cases, loss_of, arguments=ARGUMENTS, results=RESULTS)
    if problem is None:
        return None
    return (
        f"{problem} Here NaN and infinities stand outside the mask, where they must not matter. Multiplying by the "
        "mask does not remove them, because 0 * NaN is NaN: use np.where(loss_mask, x, 0.0) before anything else."
    )


def _slope(call: Caller, rng: np.random.Generator) -> str | None:
    """The student's derivative against central differences of the student's own loss."""
    step = 1e-5
    for _ in range(6):
        case = make_batch(rng)
        logprobs, old, _, mask, _, low, high = case
        ratio = np.exp(logprobs - old)
        places = [
            place
            for place in np.ndindex(*mask.shape)
            if min(abs(ratio[place] - 1 + low), abs(ratio[place] - 1 - high)) > 1e-3  # not at a kink
        ]
        moved = []
        for place in places:
            for sign in (1, -1):
                at = logprobs.copy()
                at[place] += sign * step
                moved.append((at, *case[1:]))
        (_, gradient), *results = call.many("clipped_loss", [case, *moved])
        losses = np.array([loss for loss, _ in results], dtype=float).reshape(-1, 2)
        for place, slope in zip(places, (losses[:, 0] - losses[:, 1]) / (2 * step), strict=True):
            if not abs(gradient[place] - slope) <= 1e-5 + 1e-4 * abs(slope):
                return (
                    f"at token {tuple(map(int, place))} (ratio {ratio[place]:.3f}, sampled: {bool(mask[place])}) your "
                    f"gradient is {gradient[place]:.5g}, but your loss changes by {slope:.5g} for each nat. expected "
                    f"the gradient to be the slope of the loss you return, for {_told(case)}. Did you derive another "
                    "formula than the one that you compute?"
                )
    return None


def _told(case: Case) -> str:
    return ", ".join(f"{name}={show(value, 120)}" for name, value in zip(ARGUMENTS, case, strict=True))


def _check_fraction(call: Caller, rng: np.random.Generator) -> str | None:
    def outside(logprobs: Floats, old: Floats, a: Any, mask: Any, weights: Floats, low: float, high: float) -> float:
        with np.errstate(invalid="ignore"):
            ratio = np.exp(np.where(mask, logprobs - old, 0.0))
        return float((weights * mask * ((ratio < 1 - low) | (ratio > 1 + high))).sum())

    def unweighted(*case: Any) -> float:
        logprobs, old, advantages, mask, _, low, high = case
        return clip_fraction_of(logprobs, old, advantages, mask, mask / mask.sum(), low, high)

    cases = [make_batch(rng, outside=("numbers", "garbage")[i % 2]) for i in range(CASES)]
    suspects = {
        "every ratio outside the interval counts. The clip cuts the gradient only where the clipped term is the "
        "smaller one: of good tokens above, of bad tokens below.": outside,
        "every sampled token counts the same. Sum the weights.": unweighted,
    }
    return compare(call, "clip_fraction", cases, clip_fraction_of, arguments=ARGUMENTS, suspects=suspects)


def _whiten(call: Caller, rng: np.random.Generator) -> str | None:
    def reference(advantages: Floats, mask: Any, ddof: int = 1, everything: bool = False) -> Floats:
        chosen = advantages.ravel() if everything else advantages[mask]
        mean = math.fsum(chosen) / max(1, len(chosen))
        variance = math.fsum((x - mean) ** 2 for x in chosen) / max(1, len(chosen) - ddof)
        return np.where(mask | everything, (advantages - mean) / math.sqrt(variance + 1e-8), 0.0)

    def case(number: int) -> Case:
        mask = _loss_mask(rng)
        advantages = rng.normal(rng.uniform(-2, 2), rng.uniform(0.1, 3), mask.shape)
        if number % 5 == 1:
            advantages = np.full(mask.shape, 0.7)
        if number % 5 == 2:
            mask = np.arange(mask.size).reshape(mask.shape) == rng.integers(mask.size)
        return advantages, mask

    def unmasked(advantages: Floats, mask: Any) -> Floats:
        return np.where(mask, reference(advantages, mask, everything=True), 0.0)

    cases = [case(i) for i in range(CASES)]
    suspects: dict[str, Callable[..., Floats]] = {
        "mean and variance over padding and documents as well. Whiten over sampled tokens only, or the share of "
        "padding decides how large a step is.": unmasked,
        "the same, and numbers other than 0 outside the mask.": lambda a, m: reference(a, m, everything=True),
        "the variance with divisor n. Unbiased is divisor n - 1.": lambda a, m: reference(a, m, 0),
    }
    problem = compare(call, "whiten", cases, reference, arguments=("advantages", "loss_mask"), suspects=suspects)
    if problem:
        return problem
    for advantages, mask in cases:
        advantages[~mask] = np.nan
    problem = compare(call, "whiten", cases, reference, arguments=("advantages", "loss_mask"))
    return problem and f"{problem} Here NaN stands outside the mask: use np.where before anything else."


def _token_weights(call: Caller, rng: np.random.Generator) -> str | None:
    def by_length(mask: Any, aggregation: str) -> Floats:
        return _weights(mask, aggregation) if aggregation == "token-mean" else mask / (mask.shape[0] * mask.shape[1])

    def of_all(mask: Any, aggregation: str) -> Floats:
        return mask / mask.size if aggregation == "token-mean" else _weights(mask, aggregation)

    def no_rows(mask: Any, aggregation: str) -> Floats:
        scale = 1 if aggregation == "token-mean" else len(mask)
        return _weights(mask, aggregation) * scale

    cases = [(_loss_mask(rng), ("token-mean", "sequence-mean")[i % 2]) for i in range(CASES)]
    cases += [(np.array([[True, True, False], [False, False, False]]), "sequence-mean")]
    suspects = {
        "a row's sum divided by T, padding included. Divide by the row's number of sampled tokens.": by_length,
        "the sum divided by B * T, padding included. Divide by the number of sampled tokens.": of_all,
        "each row has weight 1 in the place of 1 / B.": no_rows,
    }
    return compare(call, "token_weights", cases, _weights, arguments=("loss_mask", "aggregation"), suspects=suspects)


def _k3(call: Caller, rng: np.random.Generator) -> str | None:
    def reference(logprobs: Floats, ref: Floats) -> Floats:
        return np.array([math.exp(r - p) - (r - p) - 1 for p, r in zip(logprobs.flat, ref.flat, strict=True)]).reshape(
            logprobs.shape
        )

    cases = [tuple(rng.normal(-2, 1, (2, rng.integers(1, 5), rng.integers(1, 5)))) for _ in range(CASES)]
    suspects: dict[str, Callable[..., Floats]] = {
        "logprobs and ref_logprobs exchanged: an estimate of another divergence, and one whose mean over tokens of pi "
        "is not KL(pi || pi_ref). With d = ref_logprobs - logprobs it is exp(d) - d - 1.": lambda p, r: reference(r, p),
        "k1 = -d: unbiased, but negative for half of the tokens.": lambda p, r: p - r,
        "k2 = d^2 / 2: never negative, but biased.": lambda p, r: (p - r) ** 2 / 2,
    }
    return compare(call, "k3", cases, reference, arguments=("logprobs", "ref_logprobs"), suspects=suspects)


CHECKS = (
    Check(
        "weights of tokens",
        1,
        "Where padding has weight, the learning rate depends on how long the longest episode of the batch happens to "
        "be; and a mean over sequences and one over tokens train different things.",
        _token_weights,
    ),
    Check(
        "whitened advantages",
        1,
        "Documents are long and their advantage is 0: counted in, they shift the mean and shrink the variance, so the "
        "size of a step would depend on what the retriever returned.",
        _whiten,
    ),
    Check(
        "the first step",
        1,
        "In the first step of a round pi equals pi_old and every ratio is 1: the loss is minus the mean advantage and "
        "the gradient is the plain policy gradient. An error here breaks every run.",
        _loss_check(on_policy=True),
    ),
    Check(
        "the clipped loss",
        2,
        "Later steps of a round move away from the policy that sampled. The clip takes the reward off moving further, "
        "and the minimum keeps the way back open.",
        _loss_check(),
    ),
    Check(
        "the gradient is the slope of the loss",
        1,
        "The optimiser sees the gradient alone: if it belongs to another loss, the curve that you watch says nothing.",
        _slope,
    ),
    Check(
        "only sampled tokens",
        2,
        "The policy did not choose the documents. A gradient there teaches it to write what the search engine writes; "
        "exercise 7 shows what becomes of such runs.",
        _garbage,
    ),
    Check(
        "clip fraction",
        1,
        "It is the first number to look at when a run goes wrong: above 0.3, most of the batch no longer teaches.",
        _check_fraction,
    ),
    Check(
        "k3",
        1,
        "The penalty keeps the policy near the base model; with the divergence the wrong way round, or a biased "
        "estimate, it pulls elsewhere.",
        _k3,
    ),
)
