"""What retrievers that are built over others share: their documents, and batches of which some queries fail."""

from __future__ import annotations

from collections.abc import Sequence

from search_gym.errors import PartialRetrievalError, RetrievalError
from search_gym.retrievers import CorpusRetriever, Document, Retriever

Results = list[list[Document] | RetrievalError]
"""One entry per query: its documents, or why there are none."""


def documents_of(*retrievers: Retriever) -> Sequence[Document]:
    """The documents of the first of ``retrievers`` that can show its own; none if none can."""
    shown = (retriever.documents for retriever in retrievers if isinstance(retriever, CorpusRetriever))
    return next(filter(len, shown), ())


def attempt(retriever: Retriever, queries: Sequence[str], k: int) -> Results:
    """``retriever.search(queries, k)`` with the failures of single queries in their places.

    Raises:
        RetrievalError: the retriever failed on the whole batch, or did not give one entry per query.
    """
    try:
        results: Results = list(retriever.search(queries, k))
    except PartialRetrievalError as error:
        results = error.results
    if len(results) != len(queries):
        raise RetrievalError(
            f"expected {len(queries)} lists of documents from {type(retriever).__name__}, got {len(results)}"
        )
    return results


def complete(results: Results) -> list[list[Document]]:
    """``results``, if no query has failed.

    Raises:
        PartialRetrievalError: some have.
    """
    failed = [result for result in results if isinstance(result, RetrievalError)]
    if failed:
        raise PartialRetrievalError(f"{len(failed)} of {len(results)} queries failed; the first: {failed[0]}", results)
    return [result for result in results if not isinstance(result, RetrievalError)]
