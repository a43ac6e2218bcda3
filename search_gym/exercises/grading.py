"""Grade folders of submissions: a CSV for the course, and Gradescope's results.json for each student.

Nothing of a submission runs in this process; `search_gym.exercises.sandbox` says what is contained. Whatever one does,
the others are graded.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_gym.errors import SearchGymError
from search_gym.exercises.catalogue import EXERCISES, Exercise
from search_gym.exercises.checking import Outcome, run_checks
from search_gym.exercises.sandbox import SandboxLimits

PACKAGE = Path(__file__).parent


class SubmissionError(SearchGymError, ValueError):
    """A folder holds nothing that could be graded."""


@dataclass(frozen=True)
class Submission:
    """What one student handed in: the file of each exercise that was found."""

    student: str
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Grade:
    """The outcomes of one student, by exercise; ``seconds`` of wall time."""

    student: str
    outcomes: Mapping[str, Sequence[Outcome]]
    seconds: float

    def points(self, exercise: Exercise) -> float:
        """The points of one exercise."""
        return math.fsum(outcome.points for outcome in self.outcomes[exercise.name])


def find_submissions(folders: Sequence[Path]) -> list[Submission]:
    """The submissions in ``folders``, by student.

    A folder is one submission if it holds an exercise's file, such as ``my_gae.py``, or a folder of the exercise's name
    with it; else each of its subfolders is one, with the file at any depth, and the student is the subfolder's name.

    Raises:
        SubmissionError: a folder is missing, holds no exercise's file, or two submissions have the same student.
    """
    found: dict[str, Submission] = {}
    for folder in folders:
        if not folder.is_dir():
            raise SubmissionError(f"expected a folder of submissions, got {folder}; do: check the path")
        own = {**_files(folder, *(f"{exercise.name}/" for exercise in EXERCISES)), **_files(folder, "")}
        submissions = (
            [Submission(folder.resolve().name, own)]
            if own
            else [Submission(path.name, _files(path)) for path in sorted(folder.iterdir()) if path.is_dir()]
        )
        if not any(submission.files for submission in submissions):
            names = ", ".join(exercise.file_name for exercise in EXERCISES)
            raise SubmissionError(
                f"expected {folder} to hold a file of an exercise, or folders of students with one, got none; do: name "
                f"the files {names}"
            )
        for submission in submissions:
            if submission.student in found:
                raise SubmissionError(
                    f"expected a student once, got {submission.student!r} twice; do: grade the folders one by one"
                )
            found[submission.student] = submission
    return list(found.values())


def _files(folder: Path, *depths: str) -> dict[str, Path]:
    found = {}
    for exercise in EXERCISES:
        paths = (path for depth in depths or ("**/",) for path in folder.glob(depth + exercise.file_name))
        files = sorted(path for path in paths if path.is_file())
        if files:
            found[exercise.name] = files[0]
    return found


def grade(
    submissions: Sequence[Submission],
    exercises: Sequence[Exercise],
    *,
    seed: int = 0,
    limits: SandboxLimits | None = None,
) -> Iterator[Grade]:
    """The grade of each submission in ``exercises``; a file that is missing has no outcomes and no points.

    Landlock keeps submissions from writing. Where there is none, one that changes the checks gets no points, and the
    checks are written anew for the next.
    """
    for exercise in exercises:
        _ = exercise.checks  # imported before anything of a submission runs
    seal = {path: path.read_bytes() for path in PACKAGE.rglob("*.py")}
    for submission in submissions:
        started = time.monotonic()
        outcomes = {
            exercise.name: run_checks(exercise, path, seed, submission.student, limits)
            if (path := submission.files.get(exercise.name))
            else []
            for exercise in exercises
        }
        changed = [path for path, text in seal.items() if not path.is_file() or path.read_bytes() != text]
        for path in changed:
            path.write_bytes(seal[path])
        if changed:
            message = f"the submission changed files of the grader: {', '.join(path.name for path in changed)}"
            outcomes = {e.name: [Outcome(check, message) for check in e.checks] for e in exercises}
        yield Grade(submission.student, outcomes, time.monotonic() - started)


def full_points(exercise: Exercise) -> float:
    """The points of a faultless submission."""
    return math.fsum(check.points for check in exercise.checks)


def write_csv(path: Path, grades: Sequence[Grade], exercises: Sequence[Exercise]) -> None:
    """A row for each student: the points of each exercise, their sum, and the highest possible sum."""
    full = math.fsum(map(full_points, exercises))
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["student", *(exercise.name for exercise in exercises), "total", "possible"])
        for one in grades:
            points = [one.points(exercise) for exercise in exercises]
            rows.writerow([one.student, *(f"{x:g}" for x in points), f"{math.fsum(points):g}", f"{full:g}"])


def gradescope(one: Grade, exercises: Sequence[Exercise]) -> dict[str, Any]:
    """What Gradescope reads from ``results.json`` (https://gradescope-autograders.readthedocs.io/en/latest/specs/)."""
    tests = []
    for exercise in exercises:
        outcomes = {outcome.check.name: outcome for outcome in one.outcomes[exercise.name]}
        for number, check in enumerate(exercise.checks, 1):
            outcome = outcomes.get(check.name)
            message = f"{exercise.file_name} was not handed in." if outcome is None else outcome.message
            tests.append(
                {
                    "name": f"{exercise.name}: {check.name}",
                    "number": f"{exercise.number}.{number}",
                    "score": 0.0 if outcome is None else outcome.points,
                    "max_score": check.points,
                    "status": "failed" if message else "passed",
                    "output": f"{message}\n\nWhy it matters: {check.why}" if message else "",
                    "output_format": "text",
                    "visibility": "visible",
                }
            )
    return {
        "score": math.fsum(test["score"] for test in tests),
        "execution_time": math.ceil(one.seconds),
        "stdout_visibility": "hidden",
        "tests": tests,
    }


def write_gradescope(path: Path, one: Grade, exercises: Sequence[Exercise]) -> None:
    """Write ``results.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(gradescope(one, exercises), indent=1) + "\n", encoding="utf-8")
