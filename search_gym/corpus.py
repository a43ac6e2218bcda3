"""Corpora: JSON-lines files of passages, and their memory-mapped form for those larger than the memory.

A passage is ``{"id", "contents"}``, the layout of wiki-18 in FlashRAG (Jin et al. 2024, arXiv 2405.13576) and in
Search-R1: ``contents`` is a title in double quotes, a newline and the text. Memory-mapped, a corpus is a folder with
one Arrow file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from search_gym._jsonl import rows
from search_gym.errors import CorpusError
from search_gym.plugins import require
from search_gym.retrievers import Document

_VERSION = 1
_ROWS_A_BATCH = 1000
_COLUMNS = ["id", "title", "text"]


def load_corpus(path: str | Path) -> Sequence[Document]:
    """The passages of a JSON-lines file (``.gz`` too) as a list, or those of a folder that `write_corpus` made.

    Raises:
        CorpusError: the file or folder is missing or malformed.
    """
    path = Path(path)
    return Corpus(path) if path.is_dir() else list(read_passages(path))


def read_passages(path: str | Path) -> Iterator[Document]:
    """The passages of a JSON-lines file, in its order, one at a time; the quotes around a title are taken off.

    Raises:
        CorpusError: the file is malformed; two passages with one id are noticed at its end.
    """
    for row in rows(Path(path), CorpusError):
        yield parse_contents(row.string("id"), row.string("contents"))


def parse_contents(doc_id: str, contents: str, score: float = 0.0) -> Document:
    """A passage's title, without the quotes around it, and its text."""
    title, _, text = contents.partition("\n")
    title = title.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return Document(doc_id, title, text, score)


def format_contents(document: Document) -> str:
    """What `parse_contents` reads."""
    return f'"{document.title}"\n{document.text}'


class Corpus(Sequence[Document]):
    """The documents in a folder that `write_corpus` made, read from disk as they are used."""

    def __init__(self, path: str | Path) -> None:
        """Raises CorpusError: no such folder, or an incomplete one. MissingDependencyError: no datasets library."""
        self.path = Path(path)
        try:
            about = json.loads((self.path / "corpus.json").read_text(encoding="utf-8"))
            version, size = about["version"], about["num_documents"]
            self.fingerprint: str = about["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"{self.path}: expected a corpus folder, got one without a readable corpus.json ({error!r}); "
                "do: make it with `search-gym index build` or search_gym.corpus.write_corpus"
            ) from error
        if version != _VERSION:
            raise CorpusError(f"{self.path}: expected a corpus of version {_VERSION}, got {version}; do: make it anew")
        arrow = require("pyarrow", extra="bm25")
        try:
            with arrow.memory_map(str(self.path / "corpus.arrow")) as file:
                table = arrow.ipc.open_stream(file).read_all()
        except (OSError, arrow.ArrowInvalid) as error:
            raise CorpusError(
                f"{self.path}: expected a readable corpus.arrow, got {error}; do: make the corpus anew"
            ) from error
        if table.column_names != _COLUMNS or len(table) != size:
            raise CorpusError(
                f"{self.path}: expected {size} documents with {_COLUMNS}, got {len(table)} with {table.column_names}; "
                "do: make the corpus anew"
            )
        self._size = size
        self._columns = [[_buffers(chunk) for chunk in column.chunks] for column in table.columns]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected an index below {len(self)}, got {index}")
        return self.take([index % len(self)])[0]

    def __iter__(self) -> Iterator[Document]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """The documents from ``start`` to before ``stop``, a thousand at a time in memory."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, _ROWS_A_BATCH):
            yield from self.take(range(first, min(first + _ROWS_A_BATCH, stop)))

    def take(
        self, indices: Sequence[int] | npt.NDArray[np.integer], scores: Iterable[float] | None = None
    ) -> list[Document]:
        """The documents at ``indices`` (n,), from 0 on, with ``scores`` (n,) if given."""
        places = [divmod(index, _ROWS_A_BATCH) for index in map(int, indices)]
        columns = [
            [
                str(data[starts[row] : starts[row + 1]], "utf-8")
                for batch, row in places
                for starts, data in (batches[batch],)
            ]
            for batches in self._columns
        ]
        given = repeat(0.0, len(places)) if scores is None else scores
        return [Document(*values) for values in zip(*columns, given, strict=True)]


def _buffers(column: Any) -> tuple[memoryview, memoryview]:
    """The buffers of an Arrow array of strings: where each begins, and the bytes of all.

    They are read without Arrow, which makes an object of C++ for each string and takes twice as long.
    """
    _, starts, data = column.buffers()
    return memoryview(starts).cast("i"), memoryview(b"" if data is None else data)


def write_corpus(documents: Iterable[Document], path: str | Path) -> Corpus:
    """Write ``documents`` into the folder ``path`` and open it; never more than a thousand are held in memory.

    The file ``corpus.json`` comes last: a folder that has it is complete.

    Raises:
        CorpusError: there are no documents, or one of them is not text that UTF-8 can hold.
        MissingDependencyError: no datasets library.
    """
    path = Path(path)
    arrow = require("pyarrow", extra="bm25")
    path.mkdir(parents=True, exist_ok=True)
    (path / "corpus.json").unlink(missing_ok=True)
    schema = arrow.schema([(name, arrow.string()) for name in _COLUMNS])
    digest = hashlib.blake2b(digest_size=16)
    size, waiting = 0, iter(documents)
    with arrow.OSFile(str(path / "corpus.arrow"), "wb") as file, arrow.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(waiting, _ROWS_A_BATCH)):
            columns: list[list[str]] = [[d.doc_id for d in batch], [d.title for d in batch], [d.text for d in batch]]
            try:
                digest.update(json.dumps(columns, ensure_ascii=False).encode("utf-8"))
            except UnicodeEncodeError as error:
                raise CorpusError(f"expected documents in UTF-8, got {error}; do: clean the corpus") from error
            writer.write_batch(arrow.record_batch(columns, schema=schema))
            size += len(batch)
    if not size:
        raise CorpusError("expected at least one document, got none; do: pass a corpus to write")
    about: dict[str, Any] = {"version": _VERSION, "num_documents": size, "fingerprint": digest.hexdigest()}
    (path / "corpus.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return Corpus(path)
