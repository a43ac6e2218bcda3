"""BM25 on the bm25s library, in memory or from a memory-mapped index on disk.

Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", equation 3.15, with Lucene's idf;
bm25s (Lù 2024, arXiv 2407.03618) computes every term's score once, when it builds the index.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from search_gym.errors import CorpusError, OptionError
from search_gym.plugins import require
from search_gym.retrievers import Document
from search_gym.retrievers._bm25_files import open_postings, remove_runs, write_postings
from search_gym.retrievers._bm25_search import Postings, Queries, search_numba, search_numpy
from search_gym.retrievers._index import begin, finish, open_index
from search_gym.retrievers._ranking import check_documents, check_k, pick, words

if TYPE_CHECKING:
    from search_gym.corpus import Corpus

Backend = Literal["auto", "numba", "numpy"]

K1, B = 1.2, 0.75
NUMBA_FROM = 20_000  # documents; fewer hardly win back the seconds of the first compilation


class BM25Retriever:
    """Ranks documents, title and text together, by BM25; ties go to the document that comes first in the corpus.

    A document without any word of the query is never returned, so a list may be shorter than ``k``, even empty. A word
    that a query repeats counts as often.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        postings: Postings,
        term: Callable[[str], int | None],
        *,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> None:
        """A retriever over ``postings``, where ``term`` knows the words.

        Args:
            documents: what is returned, in the order of the postings.
            postings: the scores.
            term: number of a word, None for one that no document holds.
            backend: what searches, with the same result: compiled code ("numba"), or "numpy", which is slow in large
                corpora. "auto" is numba where it is installed and there are 20,000 documents or more.
            threads: among how many numba shares a batch; the default leaves the other cores to the other processes.

        Raises:
            OptionError: another backend, or no thread. MissingDependencyError: "numba" is not installed.
        """
        if backend not in ("auto", "numba", "numpy"):
            raise OptionError(f"expected the backend 'auto', 'numba' or 'numpy', got {backend!r}; do: name one of them")
        if not isinstance(threads, int) or threads < 1:
            raise OptionError(f"expected threads >= 1, got {threads!r}; do: correct it")
        if backend == "auto":
            backend = "numba" if len(documents) >= NUMBA_FROM and find_spec("numba") else "numpy"
        if backend == "numba":
            require("numba", extra="bm25")
        self.documents = documents
        self.postings = postings
        self._term = term
        self._search = partial(search_numba, threads=threads) if backend == "numba" else search_numpy

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises OptionError: ``k`` is below 1."""
        check_k(k)
        found = self._search(self.postings, self._read(queries), k)
        documents = pick(self.documents, found.documents, found.scores)
        return [documents[start:stop] for start, stop in pairwise(found.bounds)]

    def _read(self, queries: Sequence[str]) -> Queries:
        term_of = self._term
        read = Queries([], [], [0])
        for query in queries:
            for word, count in Counter(words(query)).items():
                term = term_of(word)
                if term is not None:
                    read.terms.append(term)
                    read.counts.append(count)
            read.bounds.append(len(read.terms))
        return read


def make(
    documents: Sequence[Document],
    *,
    k1: float | None = None,
    b: float | None = None,
    index: str | Path | None = None,
    backend: Backend = "auto",
    threads: int = 1,
) -> BM25Retriever:
    """A `BM25Retriever` over ``documents``, or over those of the folder ``index`` that `build` made.

    Args:
        documents: none with ``index``.
        k1: at least 0; how slowly the score grows with the occurrences of a word. None: 1.2, or the index's own.
        b: in [0, 1]; how much long documents lose. None: 0.75, or the index's own.
        index: a folder; its files are memory-mapped, and processes share the memory.
        backend: see `BM25Retriever`.
        threads: see `BM25Retriever`.

    Raises:
        CorpusError: no document holds a word. OptionError: an option out of range, or another than the index was built
        with. IndexFileError: no usable index.
    """
    if index is not None:
        return _open(documents, index, k1, b, backend, threads)
    k1, b = K1 if k1 is None else k1, B if b is None else b
    check_parameters(k1, b)
    documents = check_documents(documents)
    vocabulary: dict[str, int] = {}
    tokens = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in words(f"{document.title} {document.text}")]
        for document in documents
    ]
    if not vocabulary:
        raise CorpusError("expected documents with at least one word, got none; do: check the corpus")
    model = _bm25s().BM25(k1=k1, b=b, method="lucene")
    model.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    scores = model.scores
    postings = Postings(scores["data"], scores["indices"], scores["indptr"], len(documents))
    return BM25Retriever(documents, postings, vocabulary.get, backend=backend, threads=threads)


def _bm25s() -> Any:
    """The library, without JAX, which it tries out as soon as it is imported: JAX takes most of a GPU for itself."""
    if "jax" in sys.modules or "bm25s" in sys.modules:
        return require("bm25s", extra="bm25")
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        return require("bm25s", extra="bm25")
    finally:
        del sys.modules["jax"]


def _open(
    documents: Sequence[Document], index: str | Path, k1: float | None, b: float | None, backend: Backend, threads: int
) -> BM25Retriever:
    if len(documents):
        raise OptionError(f"expected documents or an index, got {len(documents)} and {index}; do: leave one out")
    saved = open_index(index, "bm25")
    for name, value in {"k1": k1, "b": b}.items():
        if value not in (None, saved.options.get(name)):
            raise OptionError(
                f"expected the {name} of the index, {saved.options.get(name)}, got {value}; do: leave it out, or build "
                "another index"
            )
    postings, vocabulary = open_postings(saved.path, len(saved.corpus))
    return BM25Retriever(saved.corpus, postings, vocabulary.term, backend=backend, threads=threads)


def build(corpus: Corpus, path: Path, *, k1: float = K1, b: float = B) -> None:
    """Write an index of ``corpus`` into the folder ``path``, with k1 and b as in `make`; bm25s reads it too.

    Memory grows with the number of different words, and by some bytes a document. A build that was stopped goes on.

    Raises:
        CorpusError: no document holds a word. OptionError: ``k1`` or ``b`` out of range.
    """
    check_parameters(k1, b)
    begin(path)
    write_postings(corpus, path, k1, b)
    finish(path, "bm25", corpus, {"k1": k1, "b": b})
    remove_runs(path)


def check_parameters(k1: float, b: float) -> None:
    """Raises OptionError: ``k1`` below 0 or ``b`` outside [0, 1]."""
    if not all(isinstance(value, (int, float)) for value in (k1, b)) or not k1 >= 0 or not 0 <= b <= 1:
        raise OptionError(f"expected k1 >= 0 and b in [0, 1], got k1={k1!r} and b={b!r}; do: correct them")
