"""Solutions of the exercises, and the mistakes that are planted in them."""

from __future__ import annotations

from pathlib import Path

from search_gym.exercises.catalogue import EXERCISES, Exercise

FOLDER = Path(__file__).with_name("exercises")
MISTAKES = sorted((FOLDER / "mistakes").glob("*/*.py"))
BY_FOLDER = {exercise.folder.name: exercise for exercise in EXERCISES}


def solution(exercise: Exercise) -> Path:
    """The file that earns all points."""
    return FOLDER / "solutions" / f"{exercise.folder.name}.py"


def plant(mistake: Path, folder: Path) -> Path:
    """A submission in ``folder``: the exercise's solution with the mistake in the place of what it gets wrong."""
    exercise = BY_FOLDER[mistake.parent.name]
    submission = folder / exercise.file_name
    files = (solution(exercise), mistake)
    submission.write_text("\n".join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    return submission
