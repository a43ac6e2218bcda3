"""Several retrievers' rankings as one, by reciprocal rank fusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_gym import retrievers as plugin
from search_gym.errors import OptionError, RetrievalError
from search_gym.retrievers import Document, Retriever
from search_gym.retrievers._ranking import check_k
from search_gym.retrievers._wrapping import attempt, complete, documents_of


class HybridRetriever:
    """Ranks documents by the sum of ``weight / (constant + rank)`` over the retrievers that found them, ranks from 1.

    Cormack, Clarke and Büttcher 2009, "Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning
    Methods", section 2, with their constant of 60; the weights are 1 there. Each retriever is asked for ``depth``
    documents, or ``k`` if that is more. Documents are the same when their ids are; ties go to the one that has the
    better rank with the first retriever, then the second, and so on. The score is the sum.
    """

    def __init__(
        self,
        retrievers: Sequence[Retriever],
        *,
        weights: Sequence[float] | None = None,
        depth: int = 100,
        constant: float = 60.0,
    ) -> None:
        """Raises OptionError: fewer than two retrievers, or weights, a depth or a constant out of range."""
        if len(retrievers) < 2:
            raise OptionError(f"expected at least two retrievers, got {len(retrievers)}; do: hybrid(bm25, dense)")
        self.retrievers = tuple(retrievers)
        self.documents = documents_of(*retrievers)
        self.weights = tuple(1.0 for _ in retrievers) if weights is None else tuple(map(float, weights))
        if len(self.weights) != len(retrievers) or not all(0 < weight < float("inf") for weight in self.weights):
            raise OptionError(f"expected {len(retrievers)} weights above 0, got {list(self.weights)}; do: correct them")
        if depth < 1 or not 0 <= constant < float("inf"):
            raise OptionError(f"expected depth >= 1 and constant >= 0, got {depth} and {constant}; do: correct them")
        self.depth = depth
        self.constant = constant

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises OptionError: ``k`` is below 1. RetrievalError: what the retrievers raise; one that fails is enough."""
        check_k(k)
        rankings = [attempt(retriever, queries, max(k, self.depth)) for retriever in self.retrievers]
        return complete([self._fuse(found, k) for found in zip(*rankings, strict=True)])

    def _fuse(self, rankings: Sequence[list[Document] | RetrievalError], k: int) -> list[Document] | RetrievalError:
        documents: dict[str, Document] = {}  # in the order that breaks ties
        scores: dict[str, float] = {}
        for ranking, weight in zip(rankings, self.weights, strict=True):
            if isinstance(ranking, RetrievalError):
                return ranking
            for rank, document in enumerate(ranking, 1):
                documents.setdefault(document.doc_id, document)
                scores[document.doc_id] = scores.get(document.doc_id, 0.0) + weight / (self.constant + rank)
        best = sorted(documents, key=scores.__getitem__, reverse=True)[:k]
        return [Document(i, documents[i].title, documents[i].text, scores[i]) for i in best]


def make(
    documents: Sequence[Document],
    *,
    retrievers: Sequence[str | Mapping[str, Any] | Retriever] = ("bm25", "dense"),
    weights: Sequence[float] | None = None,
    depth: int = 100,
    constant: float = 60.0,
) -> HybridRetriever:
    """See ``HybridRetriever``; ``retrievers`` that are described are built over the same ``documents``."""
    inner = [plugin.load(retriever, documents) for retriever in retrievers]
    return HybridRetriever(inner, weights=weights, depth=depth, constant=constant)
