"""What the retrievers in this package share: words, checks of their input, and ranking with stable ties."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_gym.corpus import Corpus
from search_gym.errors import CorpusError, OptionError
from search_gym.retrievers import Document

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and underscores, in order."""
    return _WORD.findall(text.lower())


def check_k(k: int) -> None:
    """Raises OptionError unless ``k`` is at least 1."""
    if k < 1:
        raise OptionError(f"expected k >= 1, got {k}; do: ask for at least one document")


def check_documents(documents: Sequence[Document]) -> Sequence[Document]:
    """``documents`` as they are if they cannot change (a tuple, a memory-mapped corpus), else as a tuple.

    Raises:
        CorpusError: there are none.
    """
    if not len(documents):
        raise CorpusError(
            "expected documents to search in, got none; do: pass corpus=<path or documents>, a question set that "
            "brings its documents, or a retriever that has its own, such as 'bm25(index=FOLDER)'"
        )
    return documents if isinstance(documents, (tuple, Corpus)) else tuple(documents)


def pick(documents: Sequence[Document], indices: Sequence[int], scores: Sequence[float]) -> list[Document]:
    """The documents at ``indices`` (n,) with ``scores`` (n,)."""
    if isinstance(documents, Corpus):
        return documents.take(indices, scores)
    found = (documents[i] for i in indices)
    return [Document(d.doc_id, d.title, d.text, score) for d, score in zip(found, scores, strict=True)]


def best(scores: npt.NDArray[np.floating], k: int) -> list[int]:
    """Indices of the at most ``k`` highest of ``scores`` (n,) above 0, best first, ties by index."""
    if k == 1:
        first = int(scores.argmax())
        return [first] if scores[first] > 0 else []
    found = np.flatnonzero(scores > 0)
    if found.size > k:
        kth_highest = np.partition(scores[found], -k)[-k]
        found = found[scores[found] >= kth_highest]
    return found[np.argsort(-scores[found], kind="stable")][:k].tolist()
