"""Giving an exercise to a student: a folder with the page, the starter file, the visible tests and the data."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from search_gym.errors import OptionError
from search_gym.exercises.catalogue import Exercise


def start(exercise: Exercise, folder: Path) -> list[Path]:
    """Write the exercise into ``folder``, and return the files that were written.

    Raises:
        OptionError: the student's file is there already; nothing is overwritten then.
    """
    target = folder / exercise.file_name
    if target.exists():
        raise OptionError(f"expected no {target}, got one; do: go on with it, or choose another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    module = target.stem
    tests = (exercise.folder / "test_starter.py").read_text(encoding="utf-8")
    written = {
        "page.md": exercise.page,
        target.name: (exercise.folder / "starter.py").read_text(encoding="utf-8"),
        f"test_{target.name}": re.sub(r"^(from|import) starter\b", rf"\1 {module}", tests, flags=re.MULTILINE),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    data = [path for path in exercise.folder.iterdir() if path.is_file() and path.suffix not in (".py", ".md")]
    shown = sorted(path for path in data if not path.name.startswith(("_", ".")))
    for path in shown:
        shutil.copyfile(path, folder / path.name)
    return [folder / name for name in written] + [folder / path.name for path in shown]
