"""Retrievers around a student's functions, for `agents.pieces`. A query that came before is not ranked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from search_gym import Document
from search_gym.errors import RetrievalError
from search_gym.retrievers.bm25 import K1, B, words


class StudentBM25:
    """The documents with the highest ``scores(query, documents, k1, b)``, as words in lower case; see ``SLOTS``."""

    def __init__(self, documents: Sequence[Document], scores: Callable[..., Any]) -> None:
        self.documents = documents
        self._scores = scores
        self._words = [words(f"{document.title} {document.text}") for document in documents]
        self._found: dict[tuple[str, int], list[Document]] = {}

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises RetrievalError: not one finite number for each document."""
        return [self._found.get((query, k)) or self._rank(query, k) for query in queries]

    def _rank(self, query: str, k: int) -> list[Document]:
        scores = np.asarray(self._scores(words(query), self._words, K1, B), dtype=np.float64)
        if scores.shape != (len(self.documents),) or not np.isfinite(scores).all():
            raise RetrievalError(
                f"expected a finite score for each of {len(self.documents)} documents, got shape {scores.shape}; do: "
                "run search-gym exercise check bm25"
            )
        best = np.argsort(-scores, kind="stable")[:k]
        found = [replace(self.documents[i], score=float(scores[i])) for i in best.tolist() if scores[i] > 0]
        self._found[query, k] = found
        return found


class StudentSearch:
    """The documents that ``search(queries, documents, k)`` names; see ``SLOTS``."""

    def __init__(self, documents: Sequence[Document], search: Callable[..., Any]) -> None:
        self.documents = documents
        self._search = search
        self._pairs = [(document.title, document.text) for document in documents]
        self._found: dict[tuple[str, int], list[Document]] = {}

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises RetrievalError: not one list of at most k different indices for each query."""
        new = [query for query in dict.fromkeys(queries) if (query, k) not in self._found]
        if new:
            ranked = self._search(new, list(self._pairs), k)
            for query, indices in zip(new, self._checked(ranked, len(new), k), strict=True):
                self._found[query, k] = [replace(self.documents[i], score=1.0 / (n + 1)) for n, i in enumerate(indices)]
        return [self._found[query, k] for query in queries]

    def _checked(self, ranked: Any, count: int, k: int) -> list[list[int]]:
        try:
            lists = [[int(index) for index in indices] for indices in ranked]
        except (TypeError, ValueError):
            lists = []
        size = len(self.documents)
        fits = all(len(set(one)) == len(one) <= k and all(0 <= index < size for index in one) for one in lists)
        if len(lists) != count or not fits:
            raise RetrievalError(
                f"expected {count} lists of at most {k} different indices below {size}, got {ranked!r:.200}; do: run "
                "search-gym exercise check design"
            )
        return lists
