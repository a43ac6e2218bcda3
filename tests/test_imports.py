"""Who may import whom, read from the syntax trees and seen in a fresh process."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("search_gym", "agents", "benchmarks", "tests")
HEAVY = {"torch", "transformers", "faiss", "datasets"}
LIGHT = {"numpy", "gymnasium"}
# An adapter is imported only on use, and may then import the library that it is for.
ADAPTED = {
    "openenv": {"openenv", "pydantic"},
    "skyrl": {"skyrl_gym"},
    "verifiers": {"verifiers", "pydantic"},
    "verl": {"verl"},
    "tinker": {"tinker", "tinker_cookbook"},
}
LEAVES = ("spaces", "codec", "tags", "transcript", "rewards", "errors")


class Import(NamedTuple):
    """One imported name: ``from module import name`` or ``import module`` (name ""), and when it happens."""

    module: str
    name: str
    is_at_import: bool
    is_for_types: bool


def imports(path: Path) -> list[Import]:
    """All imports of a file; those under ``if TYPE_CHECKING`` never happen at run time."""
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), path, is_at_import=True, is_for_types=False))


def _walk(node: ast.AST, path: Path, *, is_at_import: bool, is_for_types: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, "", is_at_import, is_for_types) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"{path}: relative import; write the whole name"
        yield from (Import(node.module or "", alias.name, is_at_import, is_for_types) for alias in node.names)
    is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    is_guard = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in ast.iter_child_nodes(node):
        yield from _walk(
            child, path, is_at_import=is_at_import and not is_function, is_for_types=is_for_types or is_guard
        )


def modules_of(found: Import) -> set[str]:
    """The modules of ours that an import may load: ``from package import module`` loads two."""
    together = f"{found.module}.{found.name}"
    return {found.module} | ({together} if (ROOT / together.replace(".", "/")).with_suffix(".py").exists() else set())


def files(package: str) -> list[Path]:
    # A student's tests run in the student's folder, where nothing of ours imports them.
    return sorted(path for path in (ROOT / package).rglob("*.py") if path.name != "test_starter.py")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at() -> None:
    assert all(len(files(package)) > 5 for package in ("search_gym", "agents", "tests"))
    assert Import("numpy", "", True, False) in imports(ROOT / "search_gym/env.py")
    assert Import("search_gym", "render", False, False) in imports(ROOT / "search_gym/env.py")
    assert Import("search_gym.codec", "TokenCodec", True, True) in imports(ROOT / "search_gym/tags.py")


@pytest.mark.parametrize("path", files("search_gym"), ids=name_of)
def test_search_gym_imports_only_what_is_light(path: Path) -> None:
    adapted = ADAPTED.get(path.stem, set()) if path.parent.name == "adapters" else set()
    for found in imports(path):
        top = found.module.partition(".")[0]
        assert top not in ("agents", "benchmarks", "tests")
        if found.is_at_import and not found.is_for_types:
            assert top in LIGHT | adapted | {"search_gym"} | sys.stdlib_module_names, f"{found.module} at module level"
            assert "adapters" not in found.module or path.parent.name == "adapters"


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_import_nothing_of_ours_but_errors(leaf: str) -> None:
    """Types that they only name come under ``if TYPE_CHECKING``."""
    for found in imports(ROOT / f"search_gym/{leaf}.py"):
        if found.module.partition(".")[0] in OURS and found.is_at_import and not found.is_for_types:
            assert modules_of(found) == {"search_gym.errors"}


@pytest.mark.parametrize("path", [*files("search_gym"), *files("agents")], ids=name_of)
def test_nothing_imports_benchmarks_or_tests(path: Path) -> None:
    assert not {found.module.partition(".")[0] for found in imports(path)} & {"benchmarks", "tests"}


@pytest.mark.parametrize("path", files("agents"), ids=name_of)
def test_agents_import_only_public_names_of_search_gym(path: Path) -> None:
    for found in imports(path):
        if found.module.partition(".")[0] == "search_gym":
            assert not any(part.startswith("_") for part in (*found.module.split("."), found.name))


@pytest.mark.parametrize("name", ["episode", "limits", "codec", "tags", "transcript", "rewards"])
def test_the_core_is_pure(name: str) -> None:
    """No gymnasium, no shells, no clock, no I/O, no randomness."""
    found = [found for found in imports(ROOT / f"search_gym/{name}.py") if not found.is_for_types]
    loaded = set().union(*map(modules_of, found))
    assert not loaded & {"search_gym.env", "search_gym.vector_env", "search_gym.task"}
    impure = {"gymnasium", "time", "datetime", "random", "io", "os", "socket", "urllib", "threading"}
    assert not {module.partition(".")[0] for module in loaded} & impure


@pytest.mark.parametrize("use", ["", "gym.make('search_gym/TinyWiki-v0').reset()"])
def test_importing_search_gym_loads_nothing_heavy(use: str) -> None:
    program = f"import sys, gymnasium as gym, search_gym\n{use}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_is_there_and_documented() -> None:
    import search_gym

    for name in search_gym.__all__:
        assert getattr(search_gym, name) is not None
        assert name == "__version__" or getattr(search_gym, name).__doc__
