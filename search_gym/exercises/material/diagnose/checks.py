"""The hidden checks of exercise 7: the definitions by loops, warnings and causes also on runs not seen before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from search_gym.exercises.checking import Caller, Check, StudentError, show
from search_gym.exercises.material.diagnose.definitions import (
    EM,
    FLOOR,
    TIED,
    WINDOW,
    WRONG_COLLAPSES,
    Floats,
    Metrics,
    collapse,
    dead_since,
    read_runs,
    smooth,
    until,
)
from search_gym.exercises.suspects import compare

KL = "loss/approx_kl"
CAUSES = ("healthy", "steps too large", "unmasked documents", "entropy bonus")
SHOULD_BEAT, FULL_POINTS = 0.4, 0.55
"""A limit on one metric that one tries for a minute has a Youden's index of 0.6 to 0.8 on the seen runs, and of 0.5 to
0.65 on those of the check."""
LARGE_KL = 0.1
RIGHT = 0.9
EVIDENCE = {
    "healthy": "no update moved the policy far, and entropy fell slowly",
    "steps too large": "some updates moved the policy by 0.1 nats and more",
    "unmasked documents": "look at row 0, before anything was learned: entropy is a mean over trained tokens, and here "
    "the easily guessed ones of documents are among them",
    "entropy bonus": "entropy rises far above where it began",
}


def _curve(rng: np.random.Generator) -> Floats:
    """Exact match of an invented run of 120 episodes a round, which may rise, fall, come back and start luckily."""
    length = int(rng.integers(6, 45))
    knots = rng.uniform(0, 1, rng.integers(2, 7)) ** rng.uniform(0.5, 3)
    level = np.interp(np.linspace(0, len(knots) - 1, length), np.arange(len(knots)), knots)
    if rng.random() < 0.4:
        level = level * rng.uniform(0.05, 0.4)
    if rng.random() < 0.4:
        level[: rng.integers(1, 4)] = rng.uniform(0.5, 1)
    return rng.binomial(120, np.clip(level, 0, 1)) / 120


def _check_smooth(call: Caller, rng: np.random.Generator) -> str | None:
    def centred(em: Floats) -> Floats:
        return np.array([em[max(0, i - 2) : i + 3].mean() for i in range(len(em))])

    def padded(em: Floats) -> Floats:
        return np.array([em[max(0, i - 4) : i + 1].sum() / WINDOW for i in range(len(em))])

    cases = [(_curve(rng),) for _ in range(20)] + [(rng.random(n),) for n in range(1, 6)]
    suspects: dict[str, Callable[..., Any]] = {
        "a window around each update. It ends with the update: the future is not known yet.": centred,
        "the first sums divided by 5 as well. There are fewer values at the start; divide by their number.": padded,
    }
    return compare(call, "smooth", cases, smooth, arguments=("em",), suspects=suspects)


def _check_collapse(call: Caller, rng: np.random.Generator) -> str | None:
    real = [run["metrics"][EM].copy() for file in ("runs.json.gz", "_unseen.json.gz") for run in read_runs(file)]
    curves = [real[i] for i in rng.permutation(len(real))[:60]] + [_curve(rng) for _ in range(60)]
    cases = [(em,) for em in curves if collapse(em, slack=1e-9) == collapse(em) == collapse(em, slack=-1e-9)]
    return _same_index(call, "collapse", cases, collapse, WRONG_COLLAPSES)


def _same_index(
    call: Caller,
    name: str,
    cases: Sequence[tuple[Any, ...]],
    reference: Callable[..., int | None],
    suspects: dict[str, Callable[..., int | None]],
) -> str | None:
    """As `compare`, for functions that return an index or None. A mistake is named if it explains two errors in three:
    at a limit, rounding decides, and differently in the student's code."""
    values = [_index(name, got) for got in call.many(name, cases)]
    expected = [reference(*case) for case in cases]
    wrong = [i for i, (got, right) in enumerate(zip(values, expected, strict=True)) if got != right]
    if not wrong:
        return None
    explained = {text: sum(suspect(*cases[i]) == values[i] for i in wrong) for text, suspect in suspects.items()}
    best = max(explained, key=lambda text: explained[text])
    blame = f"it looks like this mistake: {best} For example, " if explained[best] >= 2 / 3 * len(wrong) else ""
    first = min(wrong, key=lambda i: len(_told(cases[i])))
    return (
        f"{blame}{name}({_told(cases[first])}): expected {expected[first]}, got {values[first]} "
        f"({len(wrong)} of {len(cases)} runs differ)."
    )


def _told(case: tuple[Any, ...]) -> str:
    (value,) = case
    return show(value[TIED]) if isinstance(value, dict) and TIED in value else show(value, 700)


def _index(name: str, got: Any) -> int | None:
    if isinstance(got, np.ndarray) and got.ndim == 0 and got.dtype.kind in "iu":
        got = int(got)
    if got is None or (isinstance(got, int) and not isinstance(got, bool)):
        return got
    raise StudentError(f"expected {name} to return the index of an update (int) or None, got {show(got)}")


def _check_dead(call: Caller, rng: np.random.Generator) -> str | None:
    def first_stretch(metrics: Metrics) -> int | None:
        tied = metrics.get(TIED, np.zeros(0))
        return next((i for i in range(len(tied) - 4) if (tied[i : i + 5] == 1).all()), None)

    def any_length(metrics: Metrics) -> int | None:
        found = metrics.get(TIED, np.zeros(0))
        start = len(found)
        while start and found[start - 1] == 1:
            start -= 1
        return start if start < len(found) else None

    def first_tied(metrics: Metrics) -> int | None:
        found = np.flatnonzero(metrics.get(TIED, np.zeros(0)) == 1)
        return int(found[0]) if found.size else None

    cases: list[tuple[Metrics]] = []
    for run in read_runs("_unseen.json.gz"):
        cases.append((until(run["metrics"], int(rng.integers(8, 41))),))
    for _ in range(20):
        tied = rng.choice([0.5, 0.9583, 1.0], size=int(rng.integers(6, 25)))
        tied[len(tied) - int(rng.integers(0, 9)) :] = 1.0
        cases.append(({EM: rng.random(len(tied)), TIED: tied},))
    suspects: dict[str, Callable[..., int | None]] = {
        "the first 5 tied updates, although others follow that are not tied: the run lived on.": first_stretch,
        "the first tied update. One round without a difference is common at the start.": first_tied,
        "an end shorter than 5 updates.": any_length,
        "updates counted from 1. Return the index, from 0.": (
            lambda metrics: None if (found := dead_since(metrics)) is None else found + 1
        ),
    }
    return _same_index(call, "dead_since", cases, dead_since, suspects)


def _check_causality(call: Caller, rng: np.random.Generator) -> str | None:
    runs = [run for file in ("runs.json.gz", "_unseen.json.gz") for run in read_runs(file)]
    chosen = [runs[i] for i in rng.permutation(len(runs))[:24]]
    whole = [_index("first_warning", got) for got in call.many("first_warning", [(run["metrics"],) for run in chosen])]
    if not any(at is not None for at in whole):
        return (
            f"expected warnings in some of {len(whole)} runs, of which some collapsed, got none. Is a limit too high?"
        )
    lengths = [
        sorted({1, int(rng.integers(2, 41)), int(rng.integers(2, 41)), *({at, at + 1} - {0} if at is not None else ())})
        for at in whole
    ]
    cases = [
        (run, at, length)
        for run, at, some in zip(chosen, whole, lengths, strict=True)
        for length in some
        if length <= 40
    ]
    got = call.many("first_warning", [(until(run["metrics"], length),) for run, _, length in cases])
    for (run, at, length), value in zip(cases, got, strict=True):
        expected = at if at is not None and at < length else None
        if _index("first_warning", value) != expected:
            return (
                f"for the whole run {run['name']!r} your first warning is {at}, so expected {expected} after its first "
                f"{length} updates, got {value}. Your rule looks ahead: did you take a mean, a maximum or the collapse "
                "itself of the whole run? In training there is no future to look at."
            )
    return None


def _check_warnings(least: float) -> Callable[[Caller, np.random.Generator], str | None]:
    def run_check(call: Caller, rng: np.random.Generator) -> str | None:
        seen = read_runs("runs.json.gz")
        runs = [*read_runs("_unseen.json.gz"), *(seen[i] for i in rng.permutation(len(seen))[: 2 * len(seen) // 3])]
        runs = [run for run in runs if smooth(run["metrics"][EM])[WINDOW - 1 :].max() >= FLOOR]
        onsets = [collapse(run["metrics"][EM]) for run in runs]
        got = [_index("first_warning", value) for value in call.many("first_warning", [(r["metrics"],) for r in runs])]
        hits = [w is not None and w < at for w, at in zip(got, onsets, strict=True) if at is not None]
        late = sum(w is not None and w >= at for w, at in zip(got, onsets, strict=True) if at is not None)
        false = [w is not None for w, at in zip(got, onsets, strict=True) if at is None]
        index = float(np.mean(hits) - np.mean(false))
        if index >= least:
            return None
        advice = (
            "it warns of runs that do well: raise the limit, or ask for several updates in a row"
            if np.mean(false) > 0.4
            else "it warns too late: exact match falls only after the policy has been moved too far; look at "
            "what moves it"
            if late > len(hits) // 4
            else "it misses collapses: compare loss/approx_kl and loss/ratio_max of runs that collapsed and of others"
        )
        return (
            f"of {len(hits)} collapses you warned of {np.mean(hits):.0%} before they began ({late} later), and of "
            f"{np.mean(false):.0%} of the {len(false)} runs that kept what they learned: Youden's index is "
            f"{index:.2f}, expected {least} or more. Here {advice}."
        )

    return run_check


def _check_cause(call: Caller, rng: np.random.Generator) -> str | None:
    unseen = [run for run in read_runs("_unseen.json.gz") if run["cause"] is not None]
    cases: list[tuple[str, str, Metrics]] = []
    for wanted in CAUSES:
        of_kind = [run for run in unseen if run["cause"] == wanted]
        for number in range(10):
            run = of_kind[number % len(of_kind)]
            # As much of the run as its evidence needs.
            first = int(np.argmax(run["metrics"][KL] >= LARGE_KL)) + 1 if wanted == "steps too large" else 1
            length = int(rng.integers(max(20, first), 41))
            cases.append((run["name"], wanted, until(run["metrics"], length)))
    got = call.many("cause", [(metrics,) for _, _, metrics in cases])
    confused = Counter[tuple[str, str]]()
    for (_, wanted, _), answer in zip(cases, got, strict=True):
        if answer not in CAUSES:
            return f"cause: expected one of {', '.join(map(repr, CAUSES))}, got {show(answer)}"
        if answer != wanted:
            confused[wanted, answer] += 1
    right = 1 - confused.total() / len(cases)
    if right >= RIGHT:
        return None
    (wanted, answer), count = confused.most_common(1)[0]
    return (
        f"{right:.0%} of {len(cases)} runs that you have not seen were named rightly, expected {RIGHT:.0%} or more. "
        f"Most often ({count} times) you said {answer!r} of a run with {wanted!r}. What gives {wanted!r} away: "
        f"{EVIDENCE[wanted]}."
    )


CHECKS = (
    Check(
        "moving averages",
        1,
        "Without an average, the luck of one round looks like a collapse, and the next one like a recovery.",
        _check_smooth,
    ),
    Check(
        "when it collapsed",
        2,
        "Two studies can be compared only if both mean the same by a collapse; most published ones mean what the curve "
        "looks like.",
        _check_collapse,
    ),
    Check(
        "when it was past help",
        1,
        "GRPO learns from differences within a group. When there are none left, every further update is electricity.",
        _check_dead,
    ),
    Check(
        "no look into the future",
        1,
        "A rule that needs the end of the run explains a collapse and prevents none.",
        _check_causality,
    ),
    Check(
        "better than guessing",
        2,
        "A warning in time is worth a checkpoint: the run can go back to before, with half the learning rate.",
        _check_warnings(SHOULD_BEAT),
    ),
    Check(
        "a warning to rely on",
        1,
        "A rule that stops good runs is switched off after a week.",
        _check_warnings(FULL_POINTS),
    ),
    Check(
        "what was done to it",
        2,
        "The four look alike in the curve of exact match, and need different remedies.",
        _check_cause,
    ),
)
