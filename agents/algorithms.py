"""Finding an algorithm by name: every module of this package that has a ``train`` and its ``PRESETS`` is one.

Nothing is imported to list them, and no table has to be edited for a new one.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from types import ModuleType

from agents.config import pick

_NEEDED = {"train", "PRESETS"}


@cache
def names() -> tuple[str, ...]:
    """The names of all algorithms, sorted."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if _top_level(path) >= _NEEDED))


def load(name: str) -> ModuleType:
    """The module of an algorithm: its ``train(config, *, make_envs, log)`` and its ``PRESETS`` by name.

    Raises:
        UnknownNameError: there is no such algorithm; the message suggests the closest names.
    """
    return importlib.import_module(f"{__package__}.{pick('algorithm', name, names())}")


def _top_level(path: Path) -> set[str]:
    """The functions that a module defines and the names that it assigns."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found
