"""What every saved index has beside its own files: ``index.json``, written last, and the corpus that it was made of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_gym._version import __version__
from search_gym.corpus import Corpus
from search_gym.errors import CorpusError, IndexFileError

_VERSION = 1
_FILE = "index.json"


@dataclass(frozen=True)
class SavedIndex:
    """What ``index.json`` says. ``kind`` is the retriever's name, ``options`` what it was built with (plain JSON)."""

    path: Path
    kind: str
    options: dict[str, Any]
    corpus: Corpus


def is_complete(path: Path) -> bool:
    """Whether an index was built in the folder ``path`` to its end."""
    return (path / _FILE).is_file()


def begin(path: Path) -> None:
    """Make the folder ``path``; an index in it is complete no more until `finish` says so."""
    path.mkdir(parents=True, exist_ok=True)
    (path / _FILE).unlink(missing_ok=True)


def finish(path: Path, kind: str, corpus: Corpus, options: dict[str, Any]) -> None:
    """Declare the index in the folder ``path`` complete; it names the corpus relative to itself."""
    about = {
        "version": _VERSION,
        "kind": kind,
        "search_gym": __version__,
        "num_documents": len(corpus),
        "corpus": os.path.relpath(corpus.path, path),
        "fingerprint": corpus.fingerprint,
        "options": options,
    }
    new = path / f"{_FILE}.new"
    new.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    new.replace(path / _FILE)


def open_index(path: str | Path, kind: str | None = None) -> SavedIndex:
    """The index in the folder ``path``.

    Raises:
        IndexFileError: it is missing, incomplete, of another kind or version, or its corpus is missing or another one.
    """
    path = Path(path)
    try:
        about = json.loads((path / _FILE).read_text(encoding="utf-8"))
        version, found, where = about["version"], about["kind"], path / about["corpus"]
        fingerprint, options = about["fingerprint"], dict(about["options"])
    except FileNotFoundError as error:
        raise IndexFileError(
            f"{path}: expected a complete index, got no {_FILE}; do: build it (again) with `search-gym index build`, "
            "which goes on where it was stopped"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexFileError(f"{path}: expected a readable {_FILE}, got {error!r}; do: build the index anew") from error
    if version != _VERSION:
        raise IndexFileError(f"{path}: expected an index of version {_VERSION}, got {version}; do: build it anew")
    if kind not in (None, found):
        raise IndexFileError(f"{path}: expected an index for {kind!r}, got one for {found!r}; do: load it as {found!r}")
    try:
        corpus = Corpus(where)
    except CorpusError as error:
        raise IndexFileError(f"{path}: expected its corpus in {where}, got: {error}") from error
    if corpus.fingerprint != fingerprint:
        raise IndexFileError(
            f"{path}: expected the corpus that the index was built from, got another one in {where}; do: build it anew"
        )
    return SavedIndex(path, found, options, corpus)
