"""Links from a page to a file outside of docs/ lead to that file inside the site.

Source text gets a page with its lines numbered; any other file is copied. A link to what does not exist stays as it is,
and the build reports it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".yml": "yaml", ".txt": "text", ".md": "markdown"}
LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add every file outside of docs/ that a page links to."""
    for page in list(files.documentation_pages()):
        rewrite(page.content_string, page.src_uri, config, lambda target: add(target, files, config))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the files that `on_files` has added."""
    return rewrite(markdown, page.file.src_uri, config, name_in_site)


def rewrite(markdown: str, page: str, config: MkDocsConfig, place: Callable[[Path], str]) -> str:
    """``markdown`` with every link from ``page`` to an existing file outside of docs/ as ``place`` names it."""
    docs = Path(config.docs_dir)

    def replace(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(docs / posixpath.dirname(page) / found[2]))
        if target.is_relative_to(docs) or not target.is_relative_to(docs.parent) or not target.is_file():
            return found[0]
        return found[1] + posixpath.relpath(place(target.relative_to(docs.parent)), posixpath.dirname(page)) + found[3]

    return LINK.sub(replace, markdown)


def name_in_site(target: Path) -> str:
    """Where ``target``, relative to the repository, is among the files of the site."""
    name = f"source/{target.as_posix()}"
    return f"{name}.md" if target.suffix in LANGUAGES else name


def add(target: Path, files: Files, config: MkDocsConfig) -> str:
    """Add ``target`` to ``files`` if it is not there yet; its name among them."""
    name, path = name_in_site(target), Path(config.docs_dir).parent / target
    if files.get_file_from_path(name) is None:
        generated: dict[str, Any] = {"abs_src_path": str(path)}
        if target.suffix in LANGUAGES:
            text = path.read_text(encoding="utf-8")
            head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {target.as_posix()}\n\n"
            fence = f'````{LANGUAGES[target.suffix]} {{linenums="1"}}\n{text}````\n'
            generated = {"content": head + fence}
        files.append(File.generated(config, name, inclusion=InclusionLevel.NOT_IN_NAV, **generated))
    return name
