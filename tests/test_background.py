"""Searches in a thread: order, batches, failures."""

from __future__ import annotations

import threading

import pytest

from search_gym._background import BackgroundSearch


def test_what_comes_during_a_call_is_answered_by_the_next_one():
    calls, may_answer, has_begun = [], threading.Event(), threading.Event()

    def retrieve(queries):
        calls.append(list(queries))
        has_begun.set()
        assert may_answer.wait(30)
        return [query.upper() for query in queries]

    search = BackgroundSearch(retrieve)
    first = search.submit(["a", "b"])
    assert has_begun.wait(30)
    later = [search.submit(queries) for queries in (["c"], ["d", "e"], ["f"])]
    assert not first.done()
    may_answer.set()
    assert first.result(30) == ["A", "B"]
    assert [future.result(30) for future in later] == [["C"], ["D", "E"], ["F"]]
    assert calls == [["a", "b"], ["c", "d", "e", "f"]]
    search.close()


def test_a_failure_reaches_everyone_who_was_in_the_call_and_no_one_else():
    def retrieve(queries):
        if "bad" in queries:
            raise KeyError("bad")
        return queries

    search = BackgroundSearch(retrieve)
    with pytest.raises(KeyError, match="bad"):
        search.submit(["bad"]).result(30)
    assert search.submit(["good"]).result(30) == ["good"]
    search.close()
