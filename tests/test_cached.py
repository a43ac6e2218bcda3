"""Answers that are kept on disk."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym import retrievers
from search_gym.errors import OptionError, PartialRetrievalError, RetrievalError
from search_gym.retrievers import Document
from search_gym.retrievers.cached import CachedRetriever

DOCUMENTS = [Document(f"d{i}", f"title {i}", f"word{i % 7} \ud800 «text»" if i else "plain") for i in range(30)]


class Counting:
    """BM25 that counts what it is asked, and fails on the queries in ``failing``."""

    def __init__(self) -> None:
        self.inner = retrievers.load("bm25", DOCUMENTS)
        self.documents = DOCUMENTS
        self.asked: list[tuple[str, int]] = []
        self.failing: set[str] = set()

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.asked += [(query, k) for query in queries]
        results = self.inner.search(queries, k)
        if self.failing & set(queries):
            raise PartialRetrievalError(
                "some failed",
                [RetrievalError("no") if q in self.failing else r for q, r in zip(queries, results, strict=True)],
            )
        return results


QUERIES = st.sampled_from(["word1", "word2", "title 3", "", "\ud800", "nothing here", "word1 word2"])
CALLS = st.lists(st.tuples(st.lists(QUERIES, max_size=6), st.integers(1, 4)), max_size=6)


@given(CALLS)
def test_it_answers_like_its_retriever_and_asks_nothing_twice(calls: list[tuple[list[str], int]]) -> None:
    counting, plain = Counting(), retrievers.load("bm25", DOCUMENTS)
    cached = CachedRetriever(counting)
    for queries, k in calls:
        assert cached.search(queries, k) == plain.search(queries, k)
    distinct = {(query, k) for queries, k in calls for query in queries}
    assert sorted(counting.asked) == sorted(distinct)
    assert cached.misses == len(distinct)
    assert cached.hits == sum(len(queries) for queries, _ in calls) - len(distinct)


def test_the_file_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    expected = CachedRetriever(Counting(), path=path).search(["word1", "\ud800", "word2"], 3)
    counting = Counting()
    again = CachedRetriever(counting, path=path)
    counting.asked.clear()  # the look at the oldest entry
    assert again.search(["word2", "word1", "\ud800"], 3) == [expected[2], expected[0], expected[1]]
    assert (counting.asked, again.hits, again.misses) == ([], 3, 0)


def test_many_queries_at_once(tmp_path: Path) -> None:
    queries = [f"word{i}" for i in range(2_000)]
    cached = CachedRetriever(Counting(), path=tmp_path / "cache.db")
    assert cached.search(queries, 1) == cached.search(queries, 1)
    assert (cached.hits, cached.misses) == (2_000, 2_000)


def test_lists_are_not_shared(tmp_path: Path) -> None:
    cached = CachedRetriever(Counting(), path=tmp_path / "cache.db")
    one, two = cached.search(["word1", "word1"], 2)
    one.clear()
    assert two == cached.search(["word1"], 2)[0] != []


def test_failures_are_named_and_not_kept(tmp_path: Path) -> None:
    counting = Counting()
    cached = CachedRetriever(counting, path=tmp_path / "cache.db")
    counting.failing = {"word2"}
    with pytest.raises(PartialRetrievalError, match="1 of 3") as caught:
        cached.search(["word1", "word2", "word3"], 2)
    assert [isinstance(result, RetrievalError) for result in caught.value.results] == [False, True, False]
    counting.failing = set()
    counting.asked.clear()
    assert cached.search(["word1", "word2", "word3"], 2) == counting.inner.search(["word1", "word2", "word3"], 2)
    assert counting.asked == [("word2", 2)]


def test_what_is_held_is_answered_while_the_retriever_is_down(tmp_path: Path) -> None:
    class Down:
        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            raise RetrievalError("connection refused")

    path = tmp_path / "cache.db"
    (held,) = CachedRetriever(Counting(), path=path).search(["word1"], 2)
    cached = CachedRetriever(Down(), path=path)
    assert cached.search(["word1"], 2) == [held]
    with pytest.raises(PartialRetrievalError, match="connection refused") as caught:
        cached.search(["word1", "word2"], 2)
    assert caught.value.results[0] == held


def test_a_file_of_another_retriever_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    CachedRetriever(retrievers.load("bm25", DOCUMENTS), path=path).search(["word1"], 3)
    with pytest.raises(OptionError, match=r"another one's.*'word1'"):
        CachedRetriever(retrievers.load("random", DOCUMENTS), path=path)
    CachedRetriever(retrievers.load("bm25", DOCUMENTS), path=path)


@pytest.mark.parametrize("make_file", [lambda p: p.write_bytes(b"not a database" * 100), lambda p: p.mkdir()])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, make_file: object) -> None:
    path = tmp_path / "cache.db"
    make_file(path)  # type: ignore[operator]
    with pytest.raises(OptionError, match="expected a cache file"):
        CachedRetriever(Counting(), path=path)
    with pytest.raises(OptionError, match="in a folder that exists"):
        CachedRetriever(Counting(), path=tmp_path / "no such folder" / "cache.db")


def test_a_file_of_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    CachedRetriever(Counting(), path=path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE about SET format = 'search-gym cache 99'")
    db.close()
    with pytest.raises(OptionError, match="cache 99"):
        CachedRetriever(Counting(), path=path)


def test_when_it_cannot_write_it_says_so_once_and_goes_on(tmp_path: Path) -> None:
    cached = CachedRetriever(Counting(), path=tmp_path / "cache.db")
    cached._db.execute("PRAGMA query_only=ON")  # as a full or read-only disk would
    plain = retrievers.load("bm25", DOCUMENTS)
    with pytest.warns(UserWarning, match="cannot be written"):
        assert cached.search(["word1"], 2) == plain.search(["word1"], 2)
    assert cached.search(["word2"], 2) == plain.search(["word2"], 2)


def _fill(path: Path, seed: int) -> None:
    cached = CachedRetriever(retrievers.load("bm25", DOCUMENTS), path=path)
    for i in range(60):
        cached.search([f"word{(seed + i) % 9}", f"only {seed} {i} word3"], 2)
    os._exit(0)  # as a kill: nothing is closed


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fill, args=(path, seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    counting = Counting()
    cached = CachedRetriever(counting, path=path)
    queries = [f"only {seed} {i} word3" for seed in range(3) for i in range(60)]
    assert cached.search(queries, 2) == counting.inner.search(queries, 2)
    assert cached.misses == 0
