"""A retriever that is sometimes wrong, to see how a policy copes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search_gym import retrievers
from search_gym._seeding import check_seed, generator_for
from search_gym.errors import OptionError, RetrievalError
from search_gym.retrievers import Document, Retriever
from search_gym.retrievers._ranking import check_documents
from search_gym.retrievers._wrapping import attempt, complete, documents_of


class NoisyRetriever:
    """Replaces each document that ``retriever`` returns, independently with ``probability``, by a random document.

    The random document is drawn uniformly from all, so it may be the replaced one or repeat another, and it takes over
    the score. What happens depends on ``seed``, the query and the rank alone.
    """

    def __init__(
        self, documents: Sequence[Document], retriever: Retriever, *, probability: float = 0.3, seed: int = 0
    ) -> None:
        """Raises CorpusError: no documents. OptionError: ``probability`` outside [0, 1] or a negative ``seed``."""
        if not 0 <= probability <= 1:
            raise OptionError(f"expected a probability in [0, 1], got {probability}; do: correct it")
        self.documents = check_documents(documents)
        self.retriever = retriever
        self.probability = probability
        self.seed = check_seed(seed)

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises what the wrapped retriever raises."""
        results = zip(queries, attempt(self.retriever, queries, k), strict=True)
        return complete([r if isinstance(r, RetrievalError) else self._disturb(query, r) for query, r in results])

    def _disturb(self, query: str, found: list[Document]) -> list[Document]:
        # One row per rank, so that a larger k adds rows and leaves the first ones as they are.
        draws = generator_for(self.seed, "noisy", query).random((len(found), 2)).tolist()
        return [
            replace(self.documents[int(where * len(self.documents))], score=document.score)
            if whether < self.probability
            else document
            for document, (whether, where) in zip(found, draws, strict=True)
        ]


def make(
    documents: Sequence[Document],
    *,
    retriever: str | Mapping[str, Any] | Retriever = "bm25",
    probability: float = 0.3,
    seed: int = 0,
) -> NoisyRetriever:
    """See ``NoisyRetriever``; without ``documents`` those of the ``retriever`` are used."""
    inner = retrievers.load(retriever, documents)
    return NoisyRetriever(documents or documents_of(inner), inner, probability=probability, seed=seed)
