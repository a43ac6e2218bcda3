"""What docs/ says of training can be done: its commands parse, its links lead somewhere, its example trains."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro

from agents import algorithms
from agents.config import TrainConfig, run_command
from search_gym.errors import OptionError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METRICS = DOCS / "metrics.md"
OVERVIEW = DOCS / "algorithms" / "README.md"
PAGES = [*sorted((DOCS / "algorithms").glob("*.md")), DOCS / "training.md"]
SMALL = ["--updates", "2", "--rollouts-per-update", "16", "--minibatch-size", "4"]
# A reward that a base model gets some of, so that not all groups are tied.
EASY = ["--env.reward", "format", "--env.max-turns", "1", "--device", "cpu"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page(name: str) -> str:
    return read(DOCS / "algorithms" / f"{name}.md")


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A line of a shell block of a page, as words."""

    where: str
    words: tuple[str, ...]

    @property
    def module(self) -> str:
        return self.words[self.words.index("-m") + 1]

    @property
    def args(self) -> list[str]:
        return list(self.words[self.words.index("-m") + 2 :])

    @property
    def num_processes(self) -> int:
        return int(self.words[self.words.index("--num_processes") + 1]) if "--num_processes" in self.words else 1


def commands() -> Iterator[Command]:
    for path in PAGES:
        for block in code(read(path), "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield Command(f"{path.name}: {' '.join(words)}", tuple(words))


COMMANDS = list(commands())
PYTHON = [command for command in COMMANDS if "-m" in command.words]


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_has_a_page_that_the_overview_links_to(name: str) -> None:
    assert page(name).startswith("# ")
    assert f"]({name}.md)" in read(OVERVIEW)
    assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}", page(name))
    assert {command.module for command in PYTHON if command.where.startswith(f"{name}.md")} >= {f"agents.{name}"}


def own_fields(config: type[Any], prefix: str = "") -> Iterator[str]:
    """The options that a configuration adds to `TrainConfig` or sets anew, as the command line spells them."""
    hints = get_type_hints(config)
    for field in fields(config):
        if not prefix and field.name not in config.__annotations__:
            continue
        if is_dataclass(hints[field.name]):
            yield from own_fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield "--" + f"{prefix}{field.name}".replace("_", "-")


def test_options_are_spelled_as_on_the_command_line() -> None:
    options = set(own_fields(type(algorithms.load("ppo").PRESETS["default"])))
    assert options >= {"--value.coef", "--clip-low", "--run-dir"}
    assert "--seed" not in options


@pytest.mark.parametrize("name", algorithms.names())
def test_every_option_of_an_algorithm_is_on_its_page(name: str) -> None:
    options = set(own_fields(type(algorithms.load(name).PRESETS["default"])))
    assert options - set(re.findall(r"`(--[a-z.-]+)", page(name))) == set()


@pytest.mark.parametrize("name", algorithms.names())
def test_the_usage_shows_every_preset(name: str) -> None:
    shown = {
        command.args[command.args.index("--preset") + 1] if "--preset" in command.args else "default"
        for command in PYTHON
        if command.where.startswith(f"{name}.md") and command.module == f"agents.{name}"
    }
    assert shown == set(algorithms.load(name).PRESETS)


@pytest.mark.parametrize("name", algorithms.names())
def test_the_options_have_the_defaults_that_the_page_says(name: str) -> None:
    """Rows of the table of options whose default is a number, or a list of them for several options."""
    config = algorithms.load(name).PRESETS["default"]
    checked = 0
    for cell, default in re.findall(r"^\| (`--[^|]*) \| ([0-9., ]+) \|", page(name), flags=re.MULTILINE):
        options = re.findall(r"`--([a-z.-]+)`", cell)
        for option, number in zip(options, default.split(", "), strict=True):
            value: Any = config
            for part in option.replace("-", "_").split("."):
                value = getattr(value, part)
            assert value == float(number), option
            checked += 1
    assert checked >= 2


def logged(name: str, folder: Path) -> frozenset[str]:
    """The metrics that two updates of the tiny model log."""
    algorithm = algorithms.load(name)
    kinds = ["--env.kinds", "1-hop", "2-hop"]
    run_command(
        algorithm.train,
        algorithm.PRESETS,
        prog=name,
        doc=None,
        args=[*SMALL, *EASY, *kinds, "--run-dir", str(folder)],
    )
    rows = [json.loads(line) for line in read(folder / "metrics.jsonl").splitlines()]
    assert rows
    return frozenset(key for row in rows for key in row)


@pytest.mark.parametrize("name", algorithms.names())
def test_every_metric_that_a_run_logs_is_explained(name: str, tmp_path: Path) -> None:
    explained = set(re.findall(r"`([a-z_]+(?:/[a-z_<>]+)*)`", page(name) + read(METRICS)))
    keys = {re.sub(r"^rollout/em/.*", "rollout/em/<kind>", key) for key in logged(name, tmp_path)} - {"alarms"}
    assert keys - explained == set()
    assert {"loss/policy", "rollout/em/<kind>", "time/seconds"} <= keys


def parse(command: Command) -> None:
    """Raises SystemExit or OptionError where the command itself would, before it does anything."""
    module = importlib.import_module(command.module)
    presets: Mapping[str, TrainConfig] | None = vars(module).get("PRESETS")
    if presets is not None:
        parsed: list[TrainConfig] = []
        run_command(parsed.append, presets, prog=command.module, doc=module.__doc__, args=command.args)
        parsed[0].check(command.num_processes)
    elif command.module == "benchmarks.algorithm_pages":
        assert command.args == []
    else:
        assert is_dataclass(tyro.cli(get_type_hints(module.main)["config"], args=command.args))


@pytest.mark.parametrize("command", PYTHON, ids=lambda command: command.where)
def test_a_command_parses_and_its_options_fit_together(command: Command) -> None:
    parse(command)


@pytest.mark.parametrize(
    "line", ["agents.grpo --no-such-option 1", "agents.ppo --preset matcht", "agents.evaluate --modl x"]
)
def test_a_command_that_could_not_run_does_not_parse(line: str) -> None:
    with pytest.raises(SystemExit):
        parse(Command("", ("python", "-m", *line.split())))


def test_options_that_do_not_fit_the_processes_do_not_pass() -> None:
    words = shlex.split("accelerate launch --num_processes 3 -m agents.ppo")
    with pytest.raises(OptionError, match="number of processes"):
        parse(Command("", tuple(words)))


def test_commands_that_are_not_python_are_known() -> None:
    others = [command for command in COMMANDS if command not in PYTHON]
    for command in others:
        assert command.words[0] in ("diff", "tensorboard"), command.where
        if command.words[0] == "diff":
            assert all((ROOT / name).is_file() for name in command.words[1:]), command.where
    assert len(PYTHON) > 25


LINKS = [
    (path.relative_to(DOCS), target)
    for path in sorted(DOCS.rglob("*.md"))
    for target in sorted(set(re.findall(r"\]\(((?!http|#)[^)\s]+)\)", read(path))))
]


@pytest.mark.parametrize(("path", "target"), LINKS, ids=lambda value: str(value))
def test_every_relative_link_leads_to_a_file(path: Path, target: str) -> None:
    assert (DOCS / path.parent / target.partition("#")[0]).exists()


def test_the_names_in_the_details_exist() -> None:
    """``losses.gae`` in a numbered detail is a function of agents/losses.py, and so on."""
    named = {
        (module, name)
        for path in PAGES
        for module, name in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)(?:\([^`]*\))?`", read(path))
        if (ROOT / "agents" / f"{module}.py").is_file() and name not in ("json", "jsonl", "run_dir")
    }
    assert ("losses", "gae") in named
    missing = [
        (module, name) for module, name in named if name not in vars(importlib.import_module(f"agents.{module}"))
    ]
    assert missing == []


def test_the_algorithm_of_the_overview_is_found_and_trains(tmp_path: Path) -> None:
    """The example becomes a file of a copy of agents/, as it would in a clone, and is run from the command line."""
    (example,) = code(read(OVERVIEW), "python")
    assert len(example.splitlines()) <= 75
    shutil.copytree(ROOT / "agents", tmp_path / "agents", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "agents" / "cispo.py").write_text(example, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "OMP_NUM_THREADS": "1"}
    arguments = [*SMALL, *EASY, "--run-dir", str(tmp_path / "run"), "--kl-coef", "0.01"]
    run = subprocess.run(
        [sys.executable, "-m", "agents.cispo", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in read(tmp_path / "run" / "metrics.jsonl").splitlines()]
    assert [row["update"] for row in rows] == [1, 2]
    assert all(row["loss/logprob_mismatch"] < 1e-3 for row in rows)
    assert rows[-1]["loss/ratio_max"] > 1.0
    assert (tmp_path / "run" / "checkpoint" / "model.safetensors").is_file()
