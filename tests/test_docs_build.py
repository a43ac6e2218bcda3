"""The site: it builds without a warning, a broken link stops it, and nothing on it needs a network."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import search_gym
from tests.doc_pages import ROOT

NEEDED = ("material", "mkdocstrings", "mkdocs_awesome_nav", "ziamath")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs pip install -e '.[docs]'"
    ),
]


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the copy in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("docs", "search_gym", "agents", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    for name in ("mkdocs.yml", "pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def site(copy: Path) -> Path:
    done = build(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "site"


def test_every_page_is_there(copy: Path, site: Path) -> None:
    for page in (copy / "docs").rglob("*.md"):
        name = page.relative_to(copy / "docs").with_suffix(".html").as_posix()
        assert (site / name.replace("README.html", "index.html")).is_file(), name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"<(?:script|img|iframe|source)[^>]* src=\"?https?:|<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]*https?:"
    )
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []
    styles = "".join(sheet.read_text(encoding="utf-8") for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?https?:", styles) == []


def test_every_equation_is_a_picture(site: Path) -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert [page.name for page, text in pages.items() if 'class="arithmatex"' in text] == []
    assert pages[site / "algorithms" / "grpo.html"].count('<svg class="math"') == 1
    assert all(text.count('role="img" aria-label=') >= text.count('<svg class="math"') for text in pages.values())


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    anchors = {name.rpartition(".")[2] for name in re.findall(r'id="(search_gym[\w.]*|agents[\w.]*)"', reference)}
    assert {name for name in search_gym.__all__ if not name.startswith("__")} - anchors == set()
    assert {"masked_mean", "gae", "token_logprobs", "collect", "collate", "load", "format_documents"} <= anchors


def test_a_docstring_is_no_raw_markup(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"={6,}|:(?:class|func|meth):`|&gt;&gt;&gt; ", text) == [], page.name


def test_links_out_of_the_site_are_listed(site: Path) -> None:
    listed = (site / "external-links.txt").read_text(encoding="utf-8").splitlines()
    assert "https://arxiv.org/abs/2503.09516" in listed
    assert listed == sorted(set(listed))


@pytest.mark.parametrize(
    "link", ["[a page](nowhere.md)", "[an anchor](faq.md#nowhere)", "[a file](../agents/nowhere.py)"]
)
def test_a_broken_link_stops_the_build(copy: Path, site: Path, link: str) -> None:
    page = copy / "docs" / "index.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(f"{before}\n{link}\n", encoding="utf-8")
    try:
        done = build(copy)
    finally:
        page.write_text(before, encoding="utf-8")
    assert done.returncode != 0
    assert "nowhere" in done.stdout + done.stderr
