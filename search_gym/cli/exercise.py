"""Eight exercises, from parsing a turn to a retriever of your own, and the grader for a course.

    search-gym exercise list
    search-gym exercise start gae                     # a folder gae: page.md, my_gae.py, test_my_gae.py
    search-gym exercise check gae                     # what is wrong, and why it matters
    search-gym exercise grade submissions --output grades --seed 7

When all checks pass, your function trains a policy: python -m agents.demo --use gae/my_gae.py:gae.
docs/classroom.md is for those who teach: folders, seeds, Gradescope, and what the sandbox keeps a submission from.
"""

from __future__ import annotations

import argparse
import getpass
import re
import textwrap
from pathlib import Path

from search_gym.errors import OptionError
from search_gym.exercises.catalogue import EXERCISES, SLOTS, Exercise, load
from search_gym.exercises.checking import Outcome, run_checks
from search_gym.exercises.grading import Grade, find_submissions, full_points, grade, write_csv, write_gradescope
from search_gym.exercises.sandbox import SandboxLimits, protections
from search_gym.exercises.starting import start

HELP = "exercises for students, checks that explain, and a grader"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands list, start, check and grade."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="the exercises, and where their functions go in a training")
    listing.set_defaults(run=run_list)

    begin = commands.add_parser("start", help="get an exercise: page, starter file, visible tests")
    begin.add_argument("name", help="name or number of the exercise")
    begin.add_argument("--folder", type=Path, help="where it goes (default: a folder of the exercise's name)")
    begin.set_defaults(run=run_start)

    check = commands.add_parser("check", help="check your file, and explain what failed")
    check.add_argument("name", nargs="?", help="name or number (default: that of the one my_*.py in this folder)")
    check.add_argument("file", nargs="?", type=Path, help="your file (default: my_NAME.py here or in the folder NAME)")
    check.add_argument("--seed", type=int, default=0, help="with --student it decides the inputs (default: 0)")
    check.add_argument("--student", help="default: your user name")
    check.set_defaults(run=run_check)

    grading = commands.add_parser("grade", help="grade folders of submissions; write grades.csv and results.json")
    grading.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of one submission, or with one for each")
    grading.add_argument("--exercise", nargs="+", metavar="NAME", help="(default: all of which a file was found)")
    grading.add_argument("--output", type=Path, default=Path("grades"), help="folder for the results (default: grades)")
    grading.add_argument("--seed", type=int, default=0, help="with the student's name it decides the inputs")
    grading.add_argument("--student", help="the name that one submission goes by (default: that of its folder)")
    grading.add_argument("--seconds", type=float, default=20.0, help="for the calls of a check (default: 20)")
    grading.add_argument("--memory", type=float, default=2.0, metavar="GiB", help="of a process (default: 2)")
    grading.set_defaults(run=run_grade)


def run_list(_: argparse.Namespace) -> None:
    """Print the exercises."""
    width = max(len(exercise.name) for exercise in EXERCISES)
    for exercise in EXERCISES:
        print(f"{exercise.number}  {exercise.name:{width}}  {exercise.minutes:2d} min  {exercise.title}")
        for line in textwrap.wrap(f"{exercise.trainer} calls {SLOTS[exercise.slot].signature}", 100):
            print(f"{'':{width + 5}}{line}")


def run_start(args: argparse.Namespace) -> None:
    """Write the exercise's files, and say what comes next."""
    exercise = load(args.name)
    folder = args.folder or Path(exercise.name)
    for path in start(exercise, folder):
        print(path)
    print(f"Read {folder / 'page.md'}, fill in {exercise.file_name}, then: search-gym exercise check {exercise.name}")


def run_check(args: argparse.Namespace) -> None:
    """Check a file and explain what failed. The exit status is 1 if something did."""
    exercise, path = find_file(args.name, args.file)
    student = args.student or getpass.getuser()
    outcomes = run_checks(exercise, path, args.seed, student)
    messages = {outcome.message for outcome in outcomes}
    if len(messages) == 1 and None not in messages:  # the file cannot be imported, or is still empty
        print(f"FAIL  all checks: {messages.pop()}")
    else:
        print("\n".join(map(describe, outcomes)))
    points = sum(outcome.points for outcome in outcomes)
    print(f"{points:g} of {full_points(exercise):g} points for {path}")
    if any(outcome.message for outcome in outcomes):
        raise SystemExit(1)
    where, file = ("", path) if Path("agents").is_dir() else (", in a clone of the repository", path.resolve())
    shown = f"{exercise.name}/{exercise.file_name}"
    pattern = rf"^python -m .*{re.escape(shown)}:{exercise.slot}.*?(?= *#|$)"
    command = re.findall(pattern, exercise.page, re.MULTILINE)[0]
    print(f"Now train with it{where}; page.md says what to look at:\n    {command.replace(shown, str(file))}")


def find_file(name: str | None, file: Path | None) -> tuple[Exercise, Path]:
    """The exercise and the student's file.

    Raises:
        OptionError: there is no such file, or none or several to choose from. UnknownNameError: no such exercise.
    """
    if name is None:
        here = [exercise for exercise in EXERCISES if Path(exercise.file_name).is_file()]
        if len(here) != 1:
            raise OptionError(
                f"expected one file of an exercise in this folder, got {len(here)}; do: name the exercise, as in "
                "search-gym exercise check gae"
            )
        return here[0], Path(here[0].file_name)
    exercise = load(name)
    places = [file] if file else [Path(exercise.file_name), Path(exercise.name, exercise.file_name)]
    for place in places:
        if place.is_file():
            return exercise, place
    where = " or ".join(map(str, places))
    remedy = "check the path" if file else f"search-gym exercise start {exercise.name}"
    raise OptionError(f"expected your file {where}, got none; do: {remedy}")


def describe(outcome: Outcome) -> str:
    """What a check found, for a terminal."""
    check = outcome.check
    if not outcome.message:
        return f"ok    {check.name} ({check.points:g})"
    lines = [f"FAIL  {check.name} (0 of {check.points:g})"]
    for text in (outcome.message, f"Why it matters: {check.why}"):
        lines += [" " * 6 + line for line in fill(text, 94)]
    return "\n".join(lines)


def fill(text: str, width: int) -> list[str]:
    """Lines of about ``width``; no line ends inside of quotes, so that inputs can be copied."""
    lines = [""]
    for word in re.findall(r"""(?:'[^'\n]*'(?!\w)|"[^"\n]*"|\S)+""", text):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


def run_grade(args: argparse.Namespace) -> None:
    """Grade the submissions and write the results."""
    submissions = find_submissions(args.folders)
    if args.student is not None:
        if len(submissions) != 1:
            raise OptionError(f"expected one submission with --student, got {len(submissions)}; do: leave it out")
        submissions = [type(submissions[0])(args.student, submissions[0].files)]
    found = {name for submission in submissions for name in submission.files}
    exercises = [load(name) for name in args.exercise] if args.exercise else [e for e in EXERCISES if e.name in found]
    for what, holds in protections().items():
        if not holds:
            print(f"warning: on this machine a submission can {what}; grade strangers' work in a container")
    limits = SandboxLimits(seconds=args.seconds, memory_bytes=int(args.memory * (1 << 30)))
    args.output.mkdir(parents=True, exist_ok=True)
    grades: list[Grade] = []
    full = sum(map(full_points, exercises))
    for one in grade(submissions, exercises, seed=args.seed, limits=limits):
        grades.append(one)
        place = args.output if len(submissions) == 1 else args.output / one.student
        write_gradescope(place / "results.json", one, exercises)
        points = sum(one.points(exercise) for exercise in exercises)
        print(f"{one.student}: {points:g} of {full:g} points, {one.seconds:.1f} s")
    write_csv(args.output / "grades.csv", grades, exercises)
    where = args.output if len(submissions) == 1 else args.output / "STUDENT"
    print(f"wrote {args.output / 'grades.csv'} and {where / 'results.json'}")
