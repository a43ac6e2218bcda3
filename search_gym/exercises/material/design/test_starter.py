"""The visible tests of exercise 8. `pytest -s` shows scores; `search-gym exercise check design` has other worlds."""

from collections.abc import Sequence

import pytest
from starter import bm25, search

from search_gym import Document, tinywiki
from search_gym.scripted import SingleSearchPolicy, ceiling

KINDS = ("1-hop", "2-hop", "3-hop", "comparison", "intersection")
SETS = {kind: tinywiki.load("validation", kinds=(kind,), num_worlds=2, seed=8) for kind in KINDS}
DOCUMENTS = SETS["1-hop"].documents
PAIRS = [(document.title, document.text) for document in DOCUMENTS]


class Retriever:
    """A search function of this file as the environment sees it."""

    def __init__(self, function):
        self.function = function

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        return [[DOCUMENTS[i] for i in found] for found in self.function(queries, PAIRS, k)]


def scores(function) -> dict[str, float]:
    """Exact match of the agent that searches once with the question itself, by kind of question."""
    return {
        kind: ceiling(SingleSearchPolicy(), questions[:30], Retriever(function), 3)[kind]
        for kind, questions in SETS.items()
    }


@pytest.fixture(scope="module")
def mine() -> dict[str, float]:
    found, reference = scores(search), scores(bm25)
    for kind in KINDS:
        print(f"\n{kind:14s} {found[kind]:.2f}   (BM25 {reference[kind]:.2f})", end="")
    return found


def test_results_are_valid() -> None:
    queries = [*(question.text for question in SETS["2-hop"][:10]), "", "unheard-of words"]
    for k in (1, 3, 5):
        found = search(queries, PAIRS, k)
        assert len(found) == len(queries)
        for some in found:
            assert len(some) <= k
            assert len(set(some)) == len(some)
            assert all(0 <= i < len(PAIRS) for i in some)


def test_a_query_alone_finds_the_same() -> None:
    queries = [question.text for question in SETS["comparison"][:5]]
    assert search(queries, PAIRS, 3) == [search([query], PAIRS, 3)[0] for query in queries]


def test_nothing_is_lost(mine: dict[str, float]) -> None:
    assert min(mine["1-hop"], mine["comparison"]) >= 0.9


def test_beats_bm25(mine: dict[str, float]) -> None:
    assert sum(mine.values()) / len(mine) >= 0.55


def test_is_good(mine: dict[str, float]) -> None:
    assert sum(mine.values()) / len(mine) >= 0.9
