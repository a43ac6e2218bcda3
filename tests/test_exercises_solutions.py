"""Every exercise: its solution earns all points, and every planted mistake is caught in helpful words."""

import ast
import os
import re
import subprocess
import sys

import pytest

from search_gym.exercises.catalogue import EXERCISES, SLOTS
from search_gym.exercises.checking import run_checks
from search_gym.exercises.sandbox import SandboxLimits
from search_gym.exercises.starting import start
from tests.planted import BY_FOLDER, MISTAKES, plant, solution

each = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's limits are those of Linux")


@each
def test_the_solution_earns_all_points_whatever_the_seed(exercise):
    for seed, student in ((0, "ada"), (7, "grace")):
        messages = [outcome.message for outcome in run_checks(exercise, solution(exercise), seed, student)]
        assert messages == [None] * len(exercise.checks)


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_mistake_is_told_in_the_words_that_help(path, tmp_path):
    title, expects, *rest = path.read_text(encoding="utf-8").splitlines()
    words = re.fullmatch("# expects: (.+)", expects)
    seconds = re.fullmatch("# seconds: (.+)", rest[0])
    assert title.startswith("# ")
    assert words is not None
    limits = SandboxLimits(seconds=float(seconds[1])) if seconds else None
    submission = plant(path, tmp_path)
    outcomes = run_checks(BY_FOLDER[path.parent.name], submission, seed=3, student=path.stem, limits=limits)
    messages = [outcome.message for outcome in outcomes if outcome.message]
    assert any(words[1] in message for message in messages), messages


@each
def test_an_exercise_is_whole(exercise, tmp_path):
    assert sum(path.parent.name == exercise.folder.name for path in MISTAKES) >= 5
    assert sum(check.points for check in exercise.checks) == 10
    assert len({check.name for check in exercise.checks}) == len(exercise.checks)
    assert all(check.why.endswith(".") for check in exercise.checks)
    assert exercise.page.startswith(f"# Exercise {exercise.number}: ")
    assert f"{exercise.minutes} minutes" in exercise.page
    assert "arXiv" in exercise.page
    assert exercise.slot in SLOTS
    assert exercise.slot in exercise.functions
    assert f"{exercise.file_name}:{exercise.slot}" in exercise.page
    for heading in ("Theory", "Steps", "Hints", "In the real trainer"):
        assert f"\n## {heading}\n" in exercise.page
    names = {path.name for path in start(exercise, tmp_path)}
    assert {"page.md", exercise.file_name, f"test_{exercise.file_name}"} <= names


@each
def test_starter_and_solution_have_the_same_typed_functions(exercise, tmp_path):
    def functions(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}

    start(exercise, tmp_path)
    starter, solved = functions(tmp_path / exercise.file_name), functions(solution(exercise))
    for name in exercise.functions:
        stub = starter[name]
        assert ast.get_docstring(stub), name
        assert all(argument.annotation for argument in stub.args.args), name
        assert stub.returns is not None, name
        assert [a.arg for a in stub.args.args] == [a.arg for a in solved[name].args.args]


@each
def test_an_empty_starter_earns_nothing(exercise, tmp_path):
    start(exercise, tmp_path)
    outcomes = run_checks(exercise, tmp_path / exercise.file_name)
    assert sum(outcome.points for outcome in outcomes) == 0
    assert all("is not written yet" in str(outcome.message) for outcome in outcomes)


def test_the_visible_tests_pass_with_the_solutions(tmp_path):
    for exercise in EXERCISES:
        folder = tmp_path / exercise.name
        start(exercise, folder)
        (folder / exercise.file_name).write_text(solution(exercise).read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider", "--rootdir", ".", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
