"""Reciprocal rank fusion against its formula."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym.errors import OptionError, PartialRetrievalError, RetrievalError
from search_gym.retrievers import Document
from search_gym.retrievers.hybrid import HybridRetriever, make

DOCUMENTS = [Document(f"d{i}", f"title {i}", f"text {i}") for i in range(8)]


class Ranking:
    """A retriever that gives the same documents, in the order of ``ids``, for every query."""

    def __init__(self, ids: Sequence[int], failing: Sequence[str] = ()) -> None:
        self.ids = ids
        self.failing = failing
        self.documents = DOCUMENTS

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        found = [DOCUMENTS[i] for i in self.ids[:k]]
        results: list[list[Document] | RetrievalError] = [
            RetrievalError(f"no answer to {query}") if query in self.failing else list(found) for query in queries
        ]
        if self.failing:
            raise PartialRetrievalError("some failed", results)
        return [result for result in results if not isinstance(result, RetrievalError)]


ORDERS = st.lists(st.integers(0, 7), unique=True, max_size=8)


@given(st.lists(ORDERS, min_size=2, max_size=3), st.integers(1, 10), st.integers(1, 9), st.data())
def test_fusion_equals_the_formula(orders: list[list[int]], k: int, depth: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 3), min_size=len(orders), max_size=len(orders)))
    hybrid = HybridRetriever([Ranking(order) for order in orders], weights=weights, depth=depth, constant=60)
    seen = [order[: max(k, depth)] for order in orders]
    exact = {
        i: sum(Fraction(w, 60 + order.index(i) + 1) for w, order in zip(weights, seen, strict=True) if i in order)
        for i in {i for order in seen for i in order}
    }
    (found,) = hybrid.search(["x"], k)
    ids = [int(document.doc_id[1:]) for document in found]
    assert len(set(ids)) == len(ids) == min(k, len(exact))
    assert [document.score for document in found] == pytest.approx([float(exact[i]) for i in ids], rel=1e-12)
    assert [float(exact[i]) for i in ids] == pytest.approx(sorted(map(float, exact.values()), reverse=True)[: len(ids)])
    assert [(document.title, document.text) for document in found] == [(f"title {i}", f"text {i}") for i in ids]


def test_ties_go_to_the_first_retriever() -> None:
    (found,) = HybridRetriever([Ranking([0, 1]), Ranking([2, 3])]).search(["x"], 4)
    assert [document.doc_id for document in found] == ["d0", "d2", "d1", "d3"]
    (found,) = HybridRetriever([Ranking([2, 3]), Ranking([0, 1])]).search(["x"], 1)
    assert [document.doc_id for document in found] == ["d2"]


def test_a_document_that_both_find_beats_one_that_one_finds_first() -> None:
    (found,) = HybridRetriever([Ranking([0, 1]), Ranking([2, 1])]).search(["x"], 3)
    assert [document.doc_id for document in found] == ["d1", "d0", "d2"]
    assert found[0].score == pytest.approx(2 / 62)


def test_queries_that_fail_are_named_and_the_others_answered() -> None:
    hybrid = HybridRetriever([Ranking([0]), Ranking([1], failing=["b"])])
    with pytest.raises(PartialRetrievalError, match="1 of 3 queries failed; the first: no answer to b") as caught:
        hybrid.search(["a", "b", "c"], 2)
    first, second, third = caught.value.results
    assert isinstance(second, RetrievalError)
    assert first == third == HybridRetriever([Ranking([0]), Ranking([1])]).search(["a"], 2)[0]


def test_it_shows_the_documents_of_the_first_that_can() -> None:
    class Mute:
        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            return [[] for _ in queries]

    assert HybridRetriever([Mute(), Ranking([0])]).documents == DOCUMENTS
    assert HybridRetriever([Mute(), Mute()]).documents == ()


@pytest.mark.parametrize(
    "options",
    [{"weights": [1]}, {"weights": [1, 0]}, {"weights": [1, float("nan")]}, {"depth": 0}, {"constant": -1}],
)
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="expected"):
        make(DOCUMENTS, retrievers=["bm25", "oracle"], **options)  # type: ignore[arg-type]
