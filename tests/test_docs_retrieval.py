"""What docs/ says of retrieval can be done: examples run, commands parse, every retriever is explained."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from search_gym import cli, retrievers
from search_gym.retrievers import Document

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [page for name in ("retrievers", "dense", "server", "scale", "data") if (page := DOCS / f"{name}.md").exists()]
RETRIEVERS = (DOCS / "retrievers.md").read_text(encoding="utf-8")


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(code(RETRIEVERS, "python"))))
def test_the_examples_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_module")
    monkeypatch.setitem(sys.modules, "my_module", module)
    exec(compile(code(RETRIEVERS, "python")[number], "retrievers.md", "exec"), vars(module))
    if hasattr(module, "make"):
        documents = [Document("a", "one", "word"), Document("b", "two", "word word")]
        plain, turned = (retrievers.load(spec, documents) for spec in ("bm25", "my_module:make(bm25)"))
        assert turned.search(["word"], 2) == [plain.search(["word"], 2)[0][::-1]]


def test_every_retriever_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|", RETRIEVERS, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == retrievers.available()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_parse(page: Path) -> None:
    parser = cli.make_parser()
    for block in code(page.read_text(encoding="utf-8"), "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["search-gym"]:
                parser.parse_args(words[1:])  # exits, and so fails, if it cannot


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
