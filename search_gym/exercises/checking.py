"""Checks of what a student's functions return, made outside of the process in which they run.

An exercise's ``checks.py`` holds ``CHECKS: tuple[Check, ...]``. A check draws inputs from a generator that is seeded by
student and check, asks the `Caller` for the student's values, and compares them with a reference of its own::

    def run(call: Caller, rng: np.random.Generator) -> str | None:
        cases = [(rng.normal(size=(2, 5)),) for _ in range(50)]
        for (x,), got in zip(cases, call.many("f", cases), strict=True):
            if problem := unlike(got, np.tanh(x)):
                return f"f({show(x)}): {problem}. Did you ...?"
        return None
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from search_gym.errors import SearchGymError
from search_gym.exercises.catalogue import Exercise
from search_gym.exercises.sandbox import CallResult, Sandbox, SandboxLimits


class StudentError(SearchGymError, RuntimeError):
    """A student's function failed, or returned something of another kind than it should; the message is for them."""


class Caller:
    """Calls functions of a submission in its sandbox; values come back as numpy arrays and plain Python data.

    A context manager. All calls together may take three times as long as those that are made together.
    """

    def __init__(self, path: Path, limits: SandboxLimits | None = None) -> None:
        limits = limits or SandboxLimits()
        self._sandbox = Sandbox(path, limits)
        self._seconds_left = 3 * limits.seconds

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._sandbox.__exit__()

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The value of one call.

        Raises:
            StudentError: the function is missing, raised, took too long, or returned something that has no value.
        """
        return value_of(name, self._results([(name, args, kwargs)])[0])

    def many(self, name: str, cases: Sequence[tuple[Any, ...]], **kwargs: Any) -> list[Any]:
        """The values of a call for each of ``cases``, tuples of arguments; all in one process.

        Raises:
            StudentError: as for a single call; of the first that failed.
        """
        return [value_of(name, result) for result in self.results(name, cases, **kwargs)]

    def results(self, name: str, cases: Sequence[tuple[Any, ...]], **kwargs: Any) -> list[CallResult]:
        """What each call came to, failures and the arguments afterwards included."""
        return self._results([(name, tuple(case), kwargs) for case in cases])

    def _results(self, calls: Sequence[tuple[str, tuple[Any, ...], Mapping[str, Any]]]) -> list[CallResult]:
        if self._seconds_left <= 0:
            raise StudentError("no time was left for this check, because those before it took too long")
        started = time.monotonic()
        results = self._sandbox.call(calls)
        self._seconds_left -= time.monotonic() - started
        return results


def value_of(name: str, result: CallResult) -> Any:
    """The value of a call of the function ``name``.

    Raises:
        StudentError: the call failed; the message is for the student.
    """
    error = result.error
    if error is None:
        return result.value
    if error.startswith("NotImplementedError"):
        raise StudentError(f"{name} is not written yet")
    if error.startswith("AttributeError: module 'submission' has no attribute"):
        raise StudentError(f"expected a function {name} in your file, got none; do: keep the names of the starter file")
    if error.startswith("the file could not be imported"):  # the same for all functions
        raise StudentError(error)
    raise StudentError(f"{name} failed: {error}")


@dataclass(frozen=True)
class Check:
    """One property. ``why`` says in a sentence what goes wrong in training without it.

    ``run`` returns None if all is well, else one message: which input, what was expected, what came, and the
    misconception that this usually is. It may raise `StudentError`.
    """

    name: str
    points: float
    why: str
    run: Callable[[Caller, np.random.Generator], str | None]


@dataclass(frozen=True)
class Outcome:
    """What a check found; ``message`` is None when it passed."""

    check: Check
    message: str | None

    @property
    def points(self) -> float:
        """What it is worth: all or nothing."""
        return 0.0 if self.message else self.check.points


def run_checks(
    exercise: Exercise, path: Path, seed: int = 0, student: str = "", limits: SandboxLimits | None = None
) -> list[Outcome]:
    """The outcome of every check of ``exercise`` for the file ``path``; ``seed`` and ``student`` decide the inputs."""
    with Caller(path, limits) as call:
        return [run_check(check, call, check_generator(seed, student, check.name)) for check in exercise.checks]


def run_check(check: Check, call: Caller, rng: np.random.Generator) -> Outcome:
    """The outcome of one check."""
    try:
        return Outcome(check, check.run(call, rng))
    except StudentError as error:
        return Outcome(check, str(error))
    except Exception as error:  # whatever a submission returns, the other checks and submissions are to be judged
        return Outcome(check, f"what came back is not what the docstring promises ({type(error).__name__}: {error})")


def check_generator(seed: int, student: str, name: str) -> np.random.Generator:
    """The random numbers of one check for one student, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{student}\0{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def unlike(got: Any, expected: Any, *, rtol: float = 1e-6, atol: float = 1e-9) -> str | None:
    """How ``got`` differs from ``expected``, None if it does not.

    Numbers and arrays are compared within a tolerance, and NaN is unlike everything; text, None and lists of text have
    to be the same, where a list equals a tuple.
    """
    if expected is None or isinstance(expected, str) or (isinstance(expected, (list, tuple)) and _has_text(expected)):
        return None if _plain(got) == _plain(expected) else f"expected {show(expected)}, got {show(got)}"
    if isinstance(got, (list, tuple)):
        got = np.array(got) if all(isinstance(item, (int, float)) for item in got) else got
    if not isinstance(got, (int, float, np.ndarray)):
        return f"expected {_kind(expected)}, got {type(got).__name__} {show(got)}"
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        return f"expected {_kind(expected)}, got {_kind(got)}"
    if expected.dtype.kind == "b" and got.dtype.kind != "b":
        return f"expected booleans, got numbers of dtype {got.dtype}"
    if np.allclose(got, expected, rtol=rtol, atol=atol):
        return None
    if not expected.ndim:
        return f"expected {show(expected)}, got {show(got)}"
    wrong = ~np.isclose(got, expected, rtol=rtol, atol=atol)
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    place = where[0] if len(where) == 1 else where
    return (
        f"expected {show(expected[where])} at index {place}, got {show(got[where])} "
        f"({int(wrong.sum())} of {wrong.size} entries differ)"
    )


def _has_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and any(map(_has_text, value)))


def _plain(value: Any) -> Any:
    """``value`` with lists for tuples and arrays."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _kind(value: Any) -> str:
    array = np.asarray(value)
    return f"an array of shape {array.shape}" if array.ndim else "a number"


def show(value: Any, limit: int = 300) -> str:
    """``value`` for a message: rounded, on one line, not too long."""
    if isinstance(value, (np.ndarray, np.generic)) and not np.ndim(value):
        value = np.asarray(value).item()
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=4, separator=", ", threshold=60)
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def changed(result: CallResult, given: Sequence[Any]) -> int | None:
    """Which of the arguments ``given`` was changed in place by the call; None if none was."""
    if result.error is not None:
        return None
    for number, (before, after) in enumerate(zip(given, result.args, strict=False)):
        if not _same(before, after):
            return number
    return None


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, np.ndarray) and isinstance(after, np.ndarray):
        return np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(map(_same, before, after))
    return type(before) is type(after) and before == after
