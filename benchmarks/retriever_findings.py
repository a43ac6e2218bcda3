"""What runs with different retrievers come to: stability, means and intervals, and a verdict on the paper's findings.

The intervals of a cell are bootstrapped over seeds and questions. A verdict needs more care with few seeds, because a
bootstrap over three of them excludes zero whenever all three agree in sign, one time in four by chance. So it rests on
Student's t over the seeds, each of which gives one difference between runs that are equal in everything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from agents.evaluate import NUM_RESAMPLES, Estimate
from agents.health import HealthConfig
from search_gym.errors import OptionError

Run = Mapping[str, Any]

WINDOW = 10
"""Updates over which a learning curve is averaged before its falls are measured."""
LATE = 20
"""Updates at the end of training whose spread is measured."""
REACHED = 0.5
"""Exact match whose first update is reported."""
LEARNED = HealthConfig().least_em
"""Best mean exact match from which on there is something that a run could lose."""


def trailing_mean(values: Sequence[float], window: int) -> npt.NDArray[np.float64]:
    """The mean of each value and the up to ``window - 1`` before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    return (sums[stop] - sums[start]) / (stop - start)


def stability(curve: Sequence[float], episodes: int) -> dict[str, Any]:
    """How smoothly exact match (n,), each a mean over so many ``episodes``, rose in training.

    ``best`` is the highest mean of `WINDOW` updates; ``largest_fall`` how far the same mean fell below its best so far;
    ``late_std`` the standard deviation over the last `LATE` updates; ``sampling_std`` the part of it that the drawing
    of episodes alone explains, ``sqrt(p (1 - p) / episodes)``; ``area`` the mean of the curve; ``reached`` the first
    update whose mean of `WINDOW` is `REACHED`, None where none is; ``learned`` whether there was anything to lose.
    """
    mean = trailing_mean(curve, WINDOW)[min(WINDOW, len(curve)) - 1 :]
    late = np.asarray(curve[-LATE:], dtype=np.float64)
    p = float(late.mean())
    first = np.flatnonzero(mean >= REACHED)
    return {
        "best": round(float(mean.max()), 4),
        "largest_fall": round(float((np.maximum.accumulate(mean) - mean).max()), 4),
        "late_std": round(float(late.std()), 4),
        "sampling_std": round(math.sqrt(max(0.0, p * (1 - p)) / episodes), 4),
        "area": round(float(np.mean(curve)), 4),
        "reached": int(first[0]) + min(WINDOW, len(curve)) if first.size else None,
        "learned": bool(mean.max() >= LEARNED),
    }


def crossed_bootstrap(values: npt.NDArray[np.float64], seed: int = 0) -> Estimate:
    """Mean of ``values`` (S, Q) and its 95 % percentile interval when seeds and questions are drawn anew.

    Both are drawn with replacement and independently, because every seed answers the same questions (Owen 2007, "The
    pigeonhole bootstrap"). With one seed the interval is over questions alone.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_questions = values.shape
    by_seed = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=NUM_RESAMPLES)
    by_question = rng.multinomial(num_questions, np.full(num_questions, 1 / num_questions), size=NUM_RESAMPLES)
    means = np.einsum("rs,sq,rq->r", by_seed, values, by_question, optimize=True) / values.size
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high))


def t_quantile(degrees: int) -> float:
    """The 0.975 quantile of Student's t, from the finite series for whole degrees of freedom (Abramowitz and Stegun
    1964, 26.7.3 and 26.7.4) by bisection.

    Raises:
        OptionError: no degree of freedom.
    """
    if degrees < 1:
        raise OptionError(f"expected at least 1 degree of freedom, got {degrees}; do: run two seeds or more")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(theta: float, degrees: int) -> float:
    """The probability that |t| < tan(theta) * sqrt(degrees)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * step / (step + 1)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def t_interval(values: Sequence[float]) -> Estimate:
    """The mean of ``values`` and Student's 95 % interval; a single value has one without bounds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


VERDICTS = ("reproduces", "contradicts", "undecided")


def verdict(difference: Estimate, sign: int) -> str:
    """The first of `VERDICTS` when the whole interval has the paper's ``sign``, the second when it has the other one,
    the third when it reaches zero."""
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "reproduces" if (difference.low > 0) == (sign > 0) else "contradicts"


def mean_em(run: Run, where: str) -> float:
    """Exact match on held-out questions, every kind counting the same."""
    return float(np.mean(list(run["em"][where].values())))


METRICS: Mapping[str, Callable[[Run], float]] = {
    "EM": lambda run: mean_em(run, "own"),
    "EM with BM25": lambda run: mean_em(run, "common"),
    "largest fall": lambda run: run["stability"]["largest_fall"],
}


class Setting(NamedTuple):
    """What a run trains with; None stands for the mean over all retrievers, or over all k."""

    retriever: str | None
    top_k: int | None

    def __str__(self) -> str:
        parts = (self.retriever, None if self.top_k is None else f"k={self.top_k}")
        return " ".join(part for part in parts if part is not None)


@dataclass(frozen=True)
class Claim:
    """A finding of the paper: ``metric`` of ``one`` minus that of ``other`` has the sign ``sign``.

    ``paper`` is the paper's own difference in exact match, where it gives one.
    """

    finding: str
    metric: str
    one: Setting
    other: Setting
    sign: int
    paper: float | None = None


BETTER = "A better training retriever gives a better agent"
STABLE = "A better training retriever is more stable"
THREE = "k = 3 is best"
PAIRS: Mapping[tuple[str, str], float | None] = {
    ("bm25", "random"): 0.111,
    ("bm25", "noisy"): None,
    ("dense", "bm25"): 0.078,
    ("oracle", "bm25"): None,
}
"""A better and a worse retriever, and the difference that training with them makes in arXiv 2505.15117."""
K3 = {1: 0.056, 5: 0.031}
"""What k = 3 has more than another k in Search-R1, arXiv 2503.09516."""


def claims(retrievers: Sequence[str], top_ks: Sequence[int]) -> list[Claim]:
    """The paper's findings, each for the mean over k or retrievers (where there are several), and then for each."""
    every_k = [*([None] if len(top_ks) > 1 else []), *sorted(top_ks)]
    every_name = [*([None] if len(retrievers) > 1 else []), *retrievers]
    pairs = [
        (Setting(one, k), Setting(other, k), paper)
        for (one, other), paper in PAIRS.items()
        for k in every_k
        if {one, other} <= {*retrievers}
    ]
    found = [Claim(BETTER, metric, *pair[:2], 1, pair[2]) for metric in ("EM", "EM with BM25") for pair in pairs]
    found += [Claim(STABLE, "largest fall", *pair[:2], -1) for pair in pairs]
    return found + [
        Claim(THREE, "EM", Setting(name, 3), Setting(name, k), 1, paper)
        for name in every_name
        for k, paper in K3.items()
        if {3, k} <= {*top_ks}
    ]


def findings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each claim that the ``runs`` speak of, with its difference, its interval over seeds, and the verdict.

    A seed gives one difference, and counts when it has all the runs that the claim is about. A claim is "undecided"
    when none of its runs learned anything, and one about stability when any did not, because that had nothing to lose.
    """
    by_key = {(run["retriever"], run["top_k"], run["seed"]): run for run in runs}
    retrievers, top_ks, seeds = (list(dict.fromkeys(key[i] for key in by_key)) for i in range(3))
    found = []
    for claim in claims(retrievers, top_ks):
        # What one side leaves open is the same on both, so these are pairs that are equal in it.
        names = _pairs(claim.one.retriever, claim.other.retriever, retrievers)
        ks = _pairs(claim.one.top_k, claim.other.top_k, top_ks)
        metric = METRICS[claim.metric]
        differences: dict[int, float] = {}
        used: list[Run] = []
        for seed in seeds:
            keys = [[(name[side], k[side], seed) for name in names for k in ks] for side in range(2)]
            if not all(key in by_key for key in keys[0] + keys[1]):
                continue
            ones, others = ([by_key[key] for key in some] for some in keys)
            pairs = zip(ones, others, strict=True)
            differences[seed] = round(fmean(metric(x) - metric(y) for x, y in pairs), 4)
            used += ones + others
        if not differences:
            continue
        difference = t_interval(list(differences.values()))
        learned = [run["stability"]["learned"] for run in used]
        is_decidable = all(learned) if claim.finding == STABLE else any(learned)
        found.append(
            {
                "finding": claim.finding,
                "metric": claim.metric,
                "one": str(claim.one),
                "other": str(claim.other),
                "paper": claim.paper,
                "by_seed": differences,
                "difference": {
                    name: round(x, 4) if math.isfinite(x) else None for name, x in difference._asdict().items()
                },
                "verdict": verdict(difference, claim.sign) if is_decidable else "undecided",
            }
        )
    return found


Value = TypeVar("Value")


def _pairs(one: Value | None, other: Value | None, every: Sequence[Value]) -> list[tuple[Value, Value]]:
    """The two values; for None, each of ``every`` with itself."""
    if one is None or other is None:
        return [(value, value) for value in every]
    return [(one, other)]


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table from the results of `run_cell` for one retriever and top_k, one for each seed."""
    first = results[0]
    kinds = np.array(first["kinds"])
    names = [*dict.fromkeys(first["kinds"])]
    row: dict[str, Any] = {name: first[name] for name in ("retriever", "top_k", "scripted")}
    row["seeds"] = [result["seed"] for result in results]
    for where in first["scores"]:
        values = {
            metric: np.array([result["scores"][where][metric] for result in results])
            for metric in first["scores"][where]
        }
        row[where] = {
            "em": {kind: _rounded(crossed_bootstrap(values["em"][:, kinds == kind])) for kind in names},
            **{metric: _rounded(crossed_bootstrap(x)) for metric, x in values.items() if metric != "em"},
        }
    return row


def _rounded(estimate: Estimate) -> dict[str, float]:
    return {name: round(value, 4) for name, value in estimate._asdict().items()}


def plain_run(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result of `run_cell` with means in the place of the scores of single questions, and its stability."""
    kinds = np.array(result["kinds"])
    kept = ("retriever", "top_k", "seed", "curves", "alarms", "collapsed", "train_seconds", "train_cpu_seconds")
    return {
        **{name: result[name] for name in kept},
        "em": {
            where: {
                kind: round(float(np.array(scores["em"])[kinds == kind].mean()), 4) for kind in dict.fromkeys(kinds)
            }
            for where, scores in result["scores"].items()
        },
        "stability": stability(result["curves"]["em"], result["rollouts_per_update"]),
    }
