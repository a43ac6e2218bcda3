"""Comparing a student's values with a reference, and naming the misconception that makes the same wrong values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from search_gym.exercises.checking import Caller, changed, show, unlike, value_of

Case = tuple[Any, ...]
Reference = Callable[..., Any]
NAMED = "it looks like this mistake: "
"""What a message begins with that names a mistake."""


def compare(
    call: Caller,
    name: str,
    cases: Sequence[Case],
    reference: Reference,
    *,
    arguments: Sequence[str],
    suspects: Mapping[str, Reference] | None = None,
    results: Sequence[str] = (),
    atol: float = 1e-9,
) -> str | None:
    """What is wrong with the student's function ``name`` on ``cases``; None if it agrees with ``reference`` on all.

    Args:
        call: calls the student's functions.
        name: of the function.
        cases: arguments of each call, by position.
        reference: what is right.
        arguments: names of the arguments, for the message.
        suspects: by what the student should be told, a function that is wrong in a known way. The first one that gives
            the student's values in all cases is named.
        results: names of the values, where the function returns several in a tuple.
        atol: absolute tolerance, beside a relative one of 1e-6.

    Raises:
        StudentError: a call failed.
    """
    outcomes = call.results(name, cases)
    values = [value_of(name, outcome) for outcome in outcomes]
    differs = partial(_differs, results=results, atol=atol)
    expected = [reference(*case) for case in cases]
    problems = [differs(got, right) for got, right in zip(values, expected, strict=True)]
    wrong = [number for number, problem in enumerate(problems) if problem]
    if wrong:
        number = min(wrong, key=lambda n: _size(cases[n]))
        told = ", ".join(f"{key}={show(value, 160)}" for key, value in zip(arguments, cases[number], strict=False))
        message = f"{name}({told}): {problems[number]}."
        for text, suspect in (suspects or {}).items():
            guesses = [suspect(*case) for case in cases]
            if any(map(differs, guesses, expected)) and not any(map(differs, values, guesses)):
                return f"{NAMED}{text} For example, {message}"
        return message
    for case, outcome in zip(cases, outcomes, strict=True):
        which = changed(outcome, case)
        if which is not None:
            return (
                f"{name} changed its argument {arguments[which]} in place, which the caller still needs. Did you write "
                "`x -= ...`, or assign to x[...]? Make a new array."
            )
    return None


def _differs(got: Any, expected: Any, *, results: Sequence[str], atol: float) -> str | None:
    if not results:
        return unlike(got, expected, atol=atol)
    if not isinstance(got, (tuple, list)) or len(got) != len(results):
        return f"expected a tuple ({', '.join(results)}), got {show(got, 100)}"
    for label, mine, right in zip(results, got, expected, strict=True):
        if problem := unlike(mine, right, atol=atol):
            return f"{label}: {problem}"
    return None


def _size(case: Case) -> int:
    """How much there is to read."""
    return sum(value.size if isinstance(value, np.ndarray) else len(repr(value)) for value in case)
