"""Exact search in BM25 scores that are kept by word: one obvious way in numpy, one fast way through numba."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.plugins import require
from search_gym.retrievers._ranking import best

_DOCUMENTS_A_BLOCK = 16_384  # their scores, 64 KB, stay in the cache of one core


@dataclass(frozen=True)
class Postings:
    """What each word adds to the score of each document that holds it, in the layout of bm25s (sparse columns).

    Word ``t`` adds ``data[i]`` to document ``indices[i]`` for ``indptr[t] <= i < indptr[t + 1]``; ``indices`` rise
    within a word. Float32 (n,), int32 (n,) and int64 (words + 1,); they may be memory-mapped.
    """

    data: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    num_documents: int

    def __post_init__(self) -> None:
        """Make the arrays read-only, as memory-mapped ones are, so that one compiled function serves both."""
        for array in (self.data, self.indices, self.indptr):
            array.setflags(write=False)


@dataclass(frozen=True)
class Queries:
    """The words of some queries: query ``q`` has those from ``bounds[q]`` on, before ``bounds[q + 1]``.

    ``terms`` (n,) are different within a query, ``counts`` (n,) say how often each occurs.
    """

    terms: list[int]
    counts: list[int]
    bounds: list[int]


@dataclass(frozen=True)
class Rankings:
    """Indices of documents and their scores, best first: query ``q``'s begin at ``bounds[q]``."""

    documents: list[int]
    scores: list[float]
    bounds: list[int]


def search_numpy(postings: Postings, queries: Queries, k: int) -> Rankings:
    """The at most ``k`` best documents above 0 for each query, ties by index: the reference of `search_numba`."""
    rankings = Rankings([], [], [0])
    for start, stop in pairwise(queries.bounds):
        scores = np.zeros(postings.num_documents, dtype=np.float32)
        for term, count in zip(queries.terms[start:stop], queries.counts[start:stop], strict=True):
            column = slice(postings.indptr[term], postings.indptr[term + 1])
            scores[postings.indices[column]] += np.float32(count) * postings.data[column]
        found = best(scores, k)
        rankings.documents.extend(found)
        rankings.scores.extend(scores[found].tolist())
        rankings.bounds.append(len(rankings.documents))
    return rankings


def search_numba(postings: Postings, queries: Queries, k: int, *, threads: int = 1) -> Rankings:
    """What `search_numpy` finds, bit by bit, with the queries shared among ``threads``."""
    kernel = _compiled()
    k = min(k, postings.num_documents)
    terms = np.array(queries.terms, dtype=np.int64)
    counts = np.array(queries.counts, dtype=np.float32)
    bounds = np.array(queries.bounds, dtype=np.int64)
    number = len(bounds) - 1

    def run(first: int, last: int) -> Rankings:
        documents = np.empty((last - first) * k, dtype=np.int64)
        scores = np.empty((last - first) * k, dtype=np.float32)
        ends = np.zeros(last - first + 1, dtype=np.int64)
        some = bounds[first : last + 1]
        kernel(
            postings.data,
            postings.indices,
            postings.indptr,
            terms,
            counts,
            some,
            k,
            min(postings.num_documents, _DOCUMENTS_A_BLOCK),
            documents,
            scores,
            ends,
        )
        return Rankings(documents[: ends[-1]].tolist(), scores[: ends[-1]].tolist(), ends.tolist())

    if threads == 1 or number < 2:
        return run(0, number)
    # Threads of Python's own, each in code that holds no lock: numba's are not safe when a server calls from several.
    parts = [number * i // threads for i in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        return _join(list(pool.map(run, parts[:-1], parts[1:])))


def _join(parts: list[Rankings]) -> Rankings:
    joined = Rankings([], [], [0])
    for part in parts:
        joined.bounds.extend(len(joined.documents) + bound for bound in part.bounds[1:])
        joined.documents.extend(part.documents)
        joined.scores.extend(part.scores)
    return joined


@cache
def _compiled() -> Callable[..., None]:
    """`_search_blocks` as machine code, kept on disk from the first time on.

    Raises:
        MissingDependencyError: no numba.
    """
    numba = require("numba", extra="bm25")
    try:
        return numba.njit(nogil=True, cache=True)(_search_blocks)
    except RuntimeError:  # nowhere to write
        return numba.njit(nogil=True)(_search_blocks)


def _search_blocks(
    data: Any,
    indices: Any,
    indptr: Any,
    terms: Any,
    counts: Any,
    bounds: Any,
    k: Any,
    width: Any,
    documents: Any,
    scores: Any,
    ends: Any,
) -> None:
    """Fill ``documents`` and ``scores`` (queries * k,), where query ``q``'s end at ``ends[q + 1]``, block by block.

    A block of ``width`` documents begins at the next one with any of the words, and its scores are summed in the order
    of the query. Candidates are those above the k-th best so far; they wait, by rising index, until it is worth sorting
    them.
    """
    # Its size is a constant, and the end of the loop over it another one, because the compiler then knows that no index
    # is negative, which makes the search almost twice as fast.
    block = np.zeros(_DOCUMENTS_A_BLOCK, dtype=np.float32)
    room = 2 * k + 16
    waiting_scores = np.empty(room, dtype=np.float32)
    waiting = np.empty(room, dtype=np.int64)
    for query in range(len(bounds) - 1):
        first, last = bounds[query], bounds[query + 1]
        heads, tails = indptr[terms[first:last]], indptr[terms[first:last] + 1]
        size = 0
        threshold = np.float32(0)
        while True:
            start = np.int64(-1)
            for t in range(last - first):
                if heads[t] < tails[t] and (start < 0 or indices[heads[t]] < start):
                    start = np.int64(indices[heads[t]])
            if start < 0:
                break
            stop = start + width
            for t in range(last - first):
                head, tail = heads[t], tails[t]
                if head < tail and indices[tail - 1] >= stop:
                    # The end of the block: double the step until it is passed, then halve the interval.
                    step, low = 64, head
                    while low + step < tail and indices[low + step] < stop:
                        low, step = low + step, 2 * step
                    tail = min(low + step, tail)
                    while low < tail:
                        middle = (low + tail) // 2
                        if indices[middle] < stop:
                            low = middle + 1
                        else:
                            tail = middle
                count = counts[first + t]
                for i in range(head, tail):
                    # Unsigned, because for a signed index the compiler also has to ask whether it is negative.
                    block[np.uint32(indices[i] - start)] += count * data[i]
                heads[t] = tail
            for begin in range(0, _DOCUMENTS_A_BLOCK, 64):
                if begin >= width:
                    break
                above = 0
                for i in range(begin, begin + 64):
                    above += block[i] > threshold
                if above == 0:
                    continue
                for i in range(begin, begin + 64):
                    if block[i] > threshold:
                        if size == room:
                            order = np.argsort(-waiting_scores, kind="mergesort")[:k]
                            waiting_scores[:k], waiting[:k] = waiting_scores[order], waiting[order]
                            size, threshold = k, waiting_scores[k - 1]
                            if block[i] <= threshold:
                                continue
                        waiting_scores[size], waiting[size] = block[i], start + i
                        size += 1
            block[:width] = 0
        order = np.argsort(-waiting_scores[:size], kind="mergesort")[:k]
        begin, end = ends[query], ends[query] + len(order)
        documents[begin:end], scores[begin:end] = waiting[order], waiting_scores[order]
        ends[query + 1] = end
