"""Starting, checking and grading exercises from the command line, with submissions that do what they should not."""

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_gym import cli
from search_gym.cli.exercise import fill
from search_gym.errors import UnknownNameError
from search_gym.exercises import grading
from search_gym.exercises.catalogue import EXERCISES, load
from search_gym.exercises.checking import (
    Caller,
    Check,
    Outcome,
    StudentError,
    check_generator,
    run_check,
    run_checks,
    show,
    unlike,
)
from search_gym.exercises.sandbox import CallResult, SandboxLimits, has_landlock, has_namespaces
from search_gym.exercises.suspects import compare

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests/exercises"
GOOD = (TESTS / "solutions/gae.py").read_text(encoding="utf-8")
WRONG = (TESTS / "mistakes/gae/turn_by_turn.py").read_text(encoding="utf-8")
WRAPPED = GOOD + "\n_gae = gae\n\n\ndef gae(*args):\n    {}\n    return _gae(*args)\n"

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's limits are those of Linux")


def test_exercises_are_numbered_and_found_by_name_and_number():
    assert [exercise.number for exercise in EXERCISES] == list(range(1, 9))
    assert load("gae") is load("4")
    assert all(15 <= exercise.minutes <= 60 for exercise in EXERCISES)
    with pytest.raises(UnknownNameError, match="did you mean 'gae'"):
        load("gea")


def test_every_student_has_numbers_of_their_own_that_do_not_change():
    draws = {
        key: check_generator(*key).integers(1 << 62)
        for key in ((0, "ada", "a"), (1, "ada", "a"), (0, "bob", "a"), (0, "ada", "b"), (0, "", "adaa"))
    }
    assert len(set(draws.values())) == len(draws)
    assert check_generator(0, "ada", "a").integers(1 << 62) == draws[0, "ada", "a"]


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (1.0, 1.0, None),
        (1.0 + 1e-9, 1.0, None),
        (np.float64(2), 1.0, "expected 1, got 2"),
        ([1, 2], np.array([1.0, 2.0]), None),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "expected 2 at index 1, got nan"),
        (np.nan, np.nan, "expected nan"),
        (np.zeros((2, 2)), np.zeros(4), "expected an array of shape (4,), got an array of shape (2, 2)"),
        (np.zeros(2), np.zeros(2, dtype=bool), "expected booleans, got numbers"),
        ("1", 1.0, "expected a number, got str"),
        (None, np.zeros(2), "expected an array of shape (2,), got NoneType"),
        (["a", "b"], ("a", "b"), None),
        ("a", "b", "expected 'b', got 'a'"),
        (0, None, "expected None, got 0"),
    ],
)
def test_differences_are_told(got, expected, words):
    problem = unlike(got, expected)
    assert problem == words if words is None else words in problem


def test_what_is_shown_is_short_and_on_one_line():
    assert show(np.arange(6).reshape(2, 3) / 3) == "[[0. , 0.3333, 0.6667], [1. , 1.3333, 1.6667]]"
    assert len(show("x" * 9999)) == 300
    assert "\n" not in show(np.zeros((100, 100)))


class Direct(Caller):
    """Calls a function of this process, for checks of the checks."""

    def __init__(self, function):
        self._function = function

    def results(self, name, cases, **kwargs):
        given = [tuple(np.copy(x) if isinstance(x, np.ndarray) else x for x in case) for case in cases]
        return [CallResult(self._function(*case, **kwargs), case) for case in given]


def cube(x):
    return x**3


def compare_with_cube(function, **options):
    cases = [(np.array([1.0, 2.0, 3.0]),), (np.array([2.0]),)]
    return compare(Direct(function), "f", cases, cube, arguments=("x",), suspects={"a square.": np.square}, **options)


def test_a_known_mistake_is_named_and_an_unknown_one_shown():
    assert compare_with_cube(cube) is None
    known = compare_with_cube(lambda x: x * x)
    assert "it looks like this mistake: a square." in known
    assert "f(x=[2.]): expected 8 at index 0, got 4" in known, "the smallest case is shown"
    unknown = compare_with_cube(lambda x: x + 1)
    assert "mistake" not in unknown
    assert "expected 8" in unknown

    def in_place(x):
        y = cube(x)
        x[:] = 0
        return y

    assert "changed its argument x in place" in compare_with_cube(in_place)


def test_a_check_that_meets_nonsense_fails_and_says_so():
    def unpacks(call, rng):
        one, two = call("f")
        return one - two

    check = Check("c", 3, "It matters.", unpacks)
    outcome = run_check(check, lambda name: 5, np.random.default_rng(0))
    assert outcome.points == 0
    assert "not what the docstring promises (TypeError" in outcome.message
    assert Outcome(check, None).points == 3


@on_linux
def test_a_function_that_is_missing_or_empty_is_told_apart_from_one_that_fails(tmp_path):
    path = tmp_path / "my.py"
    path.write_text("def f():\n    raise NotImplementedError\ndef g(x):\n    return {}[x]")
    with Caller(path) as call:
        with pytest.raises(StudentError, match="f is not written yet"):
            call("f")
        with pytest.raises(StudentError, match="expected a function h"):
            call("h")
        with pytest.raises(StudentError, match=r"g failed: KeyError: 1 \(line 4: return"):
            call("g", 1)


@on_linux
def test_a_submission_that_takes_its_time_in_every_check_is_stopped(tmp_path):
    path = tmp_path / "my.py"
    path.write_text("def f():\n    while True: pass")
    messages = []
    with Caller(path, SandboxLimits(seconds=0.7)) as call:
        for _ in range(6):
            with pytest.raises(StudentError) as raised:
                call("f")
            messages.append(str(raised.value))
    assert "took more than 0.7 s" in messages[0]
    assert "no time was left" in messages[-1]


# The command line


def run(capsys, *args):
    try:
        status = cli.main(["exercise", *map(str, args)])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_list_names_all(capsys):
    status, shown = run(capsys, "list")
    assert status == 0
    for exercise in EXERCISES:
        assert f"{exercise.number}  {exercise.name}" in shown
        assert f"{exercise.minutes} min" in shown


@on_linux
def test_a_student_starts_checks_and_is_sent_to_train(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "start", "gae")[0] == 0
    assert sorted(path.name for path in Path("gae").iterdir()) == ["my_gae.py", "page.md", "test_my_gae.py"]
    assert "from my_gae import gae" in Path("gae/test_my_gae.py").read_text()
    status, shown = run(capsys, "check", "gae")
    assert status == 1
    assert "all checks: gae is not written yet" in shown

    Path("gae/my_gae.py").write_text(WRONG)
    status, shown = run(capsys, "start", "gae")
    assert status == 2
    assert "expected no gae/my_gae.py" in shown
    assert Path("gae/my_gae.py").read_text() == WRONG
    status, shown = run(capsys, "check", "4", "--student", "ada")
    assert status == 1
    assert "each turn was taken for an episode" in " ".join(shown.split())
    assert "Why it matters" in shown
    assert "ok    one turn" in shown
    assert "7 of 10 points" in shown

    Path("gae/my_gae.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path / "gae")
    status, shown = run(capsys, "check")
    assert status == 0
    assert "10 of 10 points" in shown
    assert "in a clone of the repository" in shown
    assert f"python -m agents.demo --use {Path('my_gae.py').resolve()}:gae --run-dir runs/my-gae" in shown
    monkeypatch.chdir(tmp_path)
    Path("agents").mkdir()
    assert "python -m agents.demo --use gae/my_gae.py:gae --run-dir runs/my-gae" in run(capsys, "check", "gae")[1]
    assert "do: check the path" in run(capsys, "check", "gae", "no_such.py")[1]


def test_the_commands_of_the_pages_are_those_that_a_check_ends_with(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for exercise in EXERCISES:
        solved = Path(__file__).parent / "exercises" / "solutions" / f"{exercise.folder.name}.py"
        command = next(line for line in exercise.page.splitlines() if line.startswith("python -m agents."))
        _, shown = run(capsys, "check", exercise.folder.name, str(solved))
        assert command.split("#")[0].split("--use")[0].strip() in shown


@pytest.mark.parametrize(
    "text",
    [
        "a b c",
        "expected 'two  words', got \"it's one\" here",
        "f(x='<search>\\n a b c d</search>'): " + "word " * 30,
        "don't break what isn't quoted, it's text " * 5,
    ],
)
def test_lines_end_between_words_and_never_inside_of_quotes(text):
    lines = fill(text, 40)
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= 40 or " " not in re.sub(r"'[^']*'|\"[^\"]*\"", "", line) for line in lines)
    for quoted in re.findall(r"(?<!\w)'[^']*'(?!\w)", text):
        assert any(quoted in line for line in lines)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("start", "gea"), "did you mean 'gae'"),
        (("check",), "expected one file of an exercise in this folder, got 0"),
        (("check", "gae"), "expected your file my_gae.py or gae/my_gae.py, got none"),
        (("check", "gae", "nothing.py"), "expected your file nothing.py, got none"),
        (("grade", "nowhere"), "expected a folder of submissions, got nowhere"),
        (("grade", "."), "or folders of students with one, got none"),
    ],
)
def test_what_cannot_be_found_is_told(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, shown = run(capsys, *args)
    assert status == 2
    assert words in shown


def hand_in(folder, submissions):
    for student, text in submissions.items():
        (folder / student).mkdir(parents=True)
        (folder / student / "my_gae.py").write_text(text, encoding="utf-8")


CHECKS_FILE = grading.PACKAGE / "material/gae/checks.py"
SUBMISSIONS = {
    "good": (GOOD, 10),
    "wrong": (WRONG, 7),
    "empty": ("", 0),
    "not python": ("def gae(:", 0),
    "loops": ("def gae(*args):\n    while True: pass", 0),
    "exits": ("import os\nos._exit(0)", 0),
    "exits politely": ("def gae(*args):\n    raise SystemExit(0)", 0),
    "forks": (WRAPPED.format("import os, time\n    if os.fork() == 0: time.sleep(9999)"), 10),
    "prints megabytes": (WRAPPED.format("print('x' * (1 << 20))"), 10),
    "edits the grader": (f"open({str(CHECKS_FILE)!r}, 'a').write('x')\n{GOOD}", 0),
    "returns a billion numbers": ("import numpy as np\ndef gae(*args):\n    return np.zeros((30000, 30000)), 1", 0),
    "returns nonsense": ("def gae(*args):\n    return 'advantages', [[1], 'b']", 0),
    "kills its parent": ("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", 0),
    "patches numpy": (
        "import numpy as np\nnp.allclose = lambda *a, **k: True\ndef gae(r, *args):\n    return 0 * r, 0 * r",
        0,
    ),
}


@on_linux
def test_grades_are_right_whatever_submissions_do(capsys, tmp_path):
    before = CHECKS_FILE.read_bytes()
    skipped = ({"edits the grader"} if not has_landlock() else set()) | (
        {"kills its parent"} if not has_namespaces() else set()
    )
    submissions = {name: given for name, given in SUBMISSIONS.items() if name not in skipped}
    hand_in(tmp_path / "submissions", {name: text for name, (text, _) in submissions.items()})
    output = tmp_path / "out"
    status, shown = run(capsys, "grade", tmp_path / "submissions", "--output", output, "--seconds", 4, "--memory", 1)
    assert status == 0, shown
    assert CHECKS_FILE.read_bytes() == before
    rows = list(csv.reader((output / "grades.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0] == ["student", "gae", "total", "possible"]
    expected = {name: points for name, (_, points) in submissions.items()}
    assert {name: float(points) for name, points, _, _ in rows[1:]} == expected
    assert all(row[3] == "10" for row in rows[1:])
    for name, points in expected.items():
        results = json.loads((output / name / "results.json").read_text(encoding="utf-8"))
        check_gradescope(results)
        assert results["score"] == points
        assert f"{name}: {points} of 10 points" in shown


def check_gradescope(results):
    """The fields of https://gradescope-autograders.readthedocs.io/en/latest/specs/ and their types."""
    assert set(results) <= {"score", "execution_time", "output", "visibility", "stdout_visibility", "tests"}
    assert isinstance(results["score"], float)
    assert isinstance(results["execution_time"], int)
    assert results["stdout_visibility"] in ("hidden", "after_due_date", "after_published", "visible")
    assert results["score"] == sum(test["score"] for test in results["tests"])
    for test in results["tests"]:
        assert set(test) <= {"score", "max_score", "status", "name", "number", "output", "output_format", "visibility"}
        assert 0 <= test["score"] <= test["max_score"]
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        assert bool(test["output"]) == (test["status"] == "failed")
        assert test["visibility"] == "visible"
        assert test["output_format"] in ("text", "html", "simple_format", "md", "ansi")


@on_linux
def test_one_submission_writes_what_gradescope_looks_for(capsys, tmp_path):
    hand_in(tmp_path, {"submission": GOOD})
    status, shown = run(
        capsys, "grade", tmp_path / "submission", "--exercise", "gae", "tags", "--output", tmp_path / "results",
        "--student", "ada@example.org",
    )  # fmt: skip
    assert status == 0, shown
    results = json.loads((tmp_path / "results/results.json").read_text())
    check_gradescope(results)
    assert results["score"] == 10
    missing = [test for test in results["tests"] if test["name"].startswith("tags")]
    assert len(missing) == len(load("tags").checks)
    assert all("my_tags.py was not handed in" in test["output"] for test in missing)
    assert "ada@example.org,10,0,10,20" in (tmp_path / "results/grades.csv").read_text().replace("\r", "")


def test_a_student_is_graded_once(tmp_path):
    hand_in(tmp_path / "a", {"ada": GOOD})
    hand_in(tmp_path / "b", {"ada": GOOD})
    with pytest.raises(grading.SubmissionError, match="got 'ada' twice"):
        grading.find_submissions([tmp_path / "a", tmp_path / "b"])
    deep = tmp_path / "c/ada/week 4"
    deep.mkdir(parents=True)
    (deep / "my_gae.py").write_text(GOOD)
    (found,) = grading.find_submissions([tmp_path / "c"])
    assert found == grading.Submission("ada", {"gae": deep / "my_gae.py"})


def test_the_folders_that_exercises_were_started_in_are_one_submission(tmp_path):
    for name in ("gae", "reward-hacking"):
        (tmp_path / name).mkdir()
        (tmp_path / name / load(name).file_name).touch()
    (found,) = grading.find_submissions([tmp_path])
    assert found.student == tmp_path.name
    assert set(found.files) == {"gae", "reward-hacking"}


def test_a_grader_that_was_changed_is_restored_and_the_submission_gets_nothing(tmp_path, monkeypatch):
    """What happens where the kernel does not keep submissions from writing."""
    package = tmp_path / "package"
    package.mkdir()
    checks = package / "checks.py"
    checks.write_text("as it was")
    monkeypatch.setattr(grading, "PACKAGE", package)

    def run_and_change(exercise, path, seed, student, limits):
        if student == "mallory":
            checks.write_text("all points for mallory")
        return [Outcome(check, None) for check in exercise.checks]

    monkeypatch.setattr(grading, "run_checks", run_and_change)
    hand_in(tmp_path / "in", {"ada": GOOD, "mallory": GOOD, "zoe": GOOD})
    submissions = grading.find_submissions([tmp_path / "in"])
    points = {one.student: one.points(load("gae")) for one in grading.grade(submissions, [load("gae")])}
    assert points == {"ada": 10, "mallory": 0, "zoe": 10}
    assert checks.read_text() == "as it was"


def test_options_that_contradict_are_told(capsys, tmp_path):
    hand_in(tmp_path / "in", {"ada": GOOD, "bob": GOOD})
    status, shown = run(capsys, "grade", tmp_path / "in", "--student", "ada", "--output", tmp_path / "out")
    assert status == 2
    assert "expected one submission with --student, got 2" in shown


def test_the_exercises_need_numpy_alone():
    code = """
import sys
from search_gym.exercises import catalogue, grading, starting
for exercise in catalogue.EXERCISES:
    exercise.checks
print([name for name in ("torch", "transformers", "pandas", "scipy", "agents") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_wheel_holds_the_exercises_and_no_solutions(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"  # a copy, because building leaves files behind that a later wheel would hold
    shutil.copytree(ROOT / "search_gym", source / "search_gym", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for exercise in EXERCISES:
        folder = f"search_gym/exercises/material/{exercise.folder.name}"
        files = {path.name for path in exercise.folder.iterdir() if path.is_file()}
        assert {"page.md", "starter.py", "test_starter.py", "checks.py"} <= files
        assert {f"{folder}/{name}" for name in files} <= set(names)
    assert not [name for name in names if "solutions" in name or "mistakes" in name or name.startswith("tests")]


def test_run_checks_takes_the_student_into_account(tmp_path):
    path = tmp_path / "my_gae.py"
    path.write_text(WRONG)
    one, same, other = (
        [outcome.message for outcome in run_checks(load("gae"), path, 0, student)] for student in ("ada", "ada", "bob")
    )
    assert one == same
    assert one != other
