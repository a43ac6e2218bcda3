"""Answers of a slow retriever, kept on disk."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_gym import retrievers
from search_gym.errors import OptionError, RetrievalError
from search_gym.retrievers import Document, Retriever
from search_gym.retrievers._ranking import check_k
from search_gym.retrievers._wrapping import Results, attempt, complete, documents_of

_FORMAT = "search-gym cache 1"
_KEYS_A_STATEMENT = 500  # SQLite's limit on variables is 999 in old versions


class CachedRetriever:
    """Asks ``retriever`` only for what the SQLite file ``path`` does not hold; several processes may share the file.

    An answer is kept for its query and ``k``, exactly as it was; failures are not kept. ``hits`` counts the queries
    that were answered without asking, repetitions in one batch among them, and ``misses`` the others. A file that
    belongs to another retriever is noticed when it is opened: its oldest query is asked again and compared. When the
    file cannot be written (a full disk, say), a warning is given once and the search goes on without it.
    """

    def __init__(self, retriever: Retriever, *, path: str | Path = ":memory:") -> None:
        """Raises OptionError: ``path`` is no cache, or one of another retriever, or its folder does not exist."""
        self.retriever = retriever
        self.documents = documents_of(retriever)
        self.path = path
        self.hits = 0
        self.misses = 0
        self._lock = threading.Lock()
        self._is_writable = True
        try:
            self._db = sqlite3.connect(str(path), timeout=60.0, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._db.close)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the last answers, nothing else
            self._db.execute("CREATE TABLE IF NOT EXISTS about (format TEXT NOT NULL)")
            self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, documents TEXT NOT NULL)")
            self._db.execute("INSERT INTO about SELECT ? WHERE NOT EXISTS (SELECT 1 FROM about)", (_FORMAT,))
            found = self._db.execute("SELECT format FROM about").fetchone()[0]
        except sqlite3.Error as error:
            raise OptionError(f"expected a cache file in a folder that exists, got {path}: {error}") from error
        if found != _FORMAT:
            raise OptionError(f"expected the format {_FORMAT!r} in {path}, got {found!r}; do: delete the file")
        self._check_owner()

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises OptionError: ``k`` is below 1. PartialRetrievalError: the retriever failed on what is not held."""
        check_k(k)
        wanted = list(dict.fromkeys(queries))
        answers: dict[str, list[Document] | RetrievalError] = dict(self._held(wanted, k))
        missing = [query for query in wanted if query not in answers]
        self.hits += len(queries) - len(missing)
        self.misses += len(missing)
        if missing:
            found = self._ask(missing, k)
            answers.update(zip(missing, found, strict=True))
            self._keep(zip(missing, found, strict=True), k)
        # Copies, so that a caller who changes one list does not change another.
        return complete([a if isinstance(a, RetrievalError) else list(a) for a in map(answers.__getitem__, queries)])

    def _ask(self, queries: Sequence[str], k: int) -> Results:
        try:
            return attempt(self.retriever, queries, k)
        except RetrievalError as error:
            return [error] * len(queries)

    def _held(self, queries: Sequence[str], k: int) -> Iterator[tuple[str, list[Document]]]:
        by_key = {_key(query, k): query for query in queries}
        keys = list(by_key)
        for start in range(0, len(keys), _KEYS_A_STATEMENT):
            part = keys[start : start + _KEYS_A_STATEMENT]
            marks = ",".join("?" * len(part))
            with self._lock:
                rows = self._db.execute(f"SELECT key, documents FROM answers WHERE key IN ({marks})", part).fetchall()
            for key, documents in rows:
                yield by_key[key], [Document(*values) for values in json.loads(documents)]

    def _keep(self, answers: Iterator[tuple[str, list[Document] | RetrievalError]], k: int) -> None:
        rows = [
            (_key(query, k), json.dumps([[d.doc_id, d.title, d.text, d.score] for d in documents]))
            for query, documents in answers
            if not isinstance(documents, RetrievalError)
        ]
        if not self._is_writable:
            return
        try:
            with self._lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
                    self._db.execute("COMMIT")
                except sqlite3.Error:
                    self._db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            self._is_writable = False
            warnings.warn(
                f"the cache {self.path} cannot be written; it is only read from now on: {error}", stacklevel=3
            )

    def _check_owner(self) -> None:
        row = self._db.execute("SELECT key, documents FROM answers ORDER BY rowid LIMIT 1").fetchone()
        if row is None:
            return
        k, query = json.loads(row[0])
        held = [(doc_id, score) for doc_id, _, _, score in json.loads(row[1])]
        try:
            (answer,) = complete(attempt(self.retriever, [query], k))
        except RetrievalError:
            return  # it cannot answer now, and may never be asked
        found = [(document.doc_id, document.score) for document in answer]
        if not _is_alike(held, found):
            raise OptionError(
                f"expected a cache of this retriever in {self.path}, got another one's: for {query!r:.80} it holds "
                f"{held}, the retriever finds {found}; do: name another file or delete this one"
            )


def _is_alike(one: Sequence[tuple[str, float]], two: Sequence[tuple[str, float]]) -> bool:
    """Whether two answers have the same documents or, as neural scores depend on the batch a little, near scores."""
    if [doc_id for doc_id, _ in one] == [doc_id for doc_id, _ in two]:
        return True
    return len(one) == len(two) and all(
        math.isclose(a, b, rel_tol=1e-4) for (_, a), (_, b) in zip(one, two, strict=True)
    )


def _key(query: str, k: int) -> str:
    # ASCII, because SQLite's texts cannot hold lone surrogates.
    return json.dumps([k, query])


def make(
    documents: Sequence[Document],
    *,
    retriever: str | Mapping[str, Any] | Retriever = "bm25",
    path: str | Path = ":memory:",
) -> CachedRetriever:
    """See ``CachedRetriever``; a ``retriever`` that is described is built over the same ``documents``."""
    return CachedRetriever(retrievers.load(retriever, documents), path=path)
