"""Retrievers against slow references and closed forms; what all share is in test_conformance.py."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym import retrievers, tinywiki
from search_gym.errors import CorpusError, OptionError, SearchGymError
from search_gym.questions import Question
from search_gym.retrievers import Document
from search_gym.retrievers._ranking import best, words
from search_gym.retrievers.noisy import NoisyRetriever

LETTERS = "abcdef"
TEXTS = st.lists(st.sampled_from(LETTERS), max_size=8).map(" ".join)
CORPORA = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12).map(
    lambda pairs: [Document(f"d{i}", title, text) for i, (title, text) in enumerate(pairs)]
)
WORDY_CORPORA = CORPORA.filter(lambda documents: any(d.title or d.text for d in documents))


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0]), min_size=1, max_size=30), st.integers(1, 40))
def test_best_equals_a_full_stable_sort(scores: list[float], k: int) -> None:
    expected = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:k]
    assert best(np.array(scores), k) == expected


# Oracle


@given(CORPORA, TEXTS, st.integers(1, 12))
def test_oracle_ranks_by_coverage_then_title(documents: list[Document], query: str, k: int) -> None:
    wanted = set(query.split())

    def key(document: Document) -> tuple[int, int]:
        title = set(document.title.split())
        return len(wanted & (title | set(document.text.split()))), len(wanted & title)

    covering = [d for d in documents if key(d)[0]]
    expected = sorted(covering, key=key, reverse=True)[:k]
    (found,) = retrievers.load("oracle", documents).search([query], k)
    assert [d.doc_id for d in found] == [d.doc_id for d in expected]


@given(CORPORA, st.data(), TEXTS, st.integers(1, 15))
def test_oracle_knows_the_supporting_documents(
    documents: list[Document], data: st.DataObject, text: str, k: int
) -> None:
    ids = [d.doc_id for d in documents]
    supporting = data.draw(st.lists(st.sampled_from(ids), unique=True))
    question = Question("q", text, ("x",), {"supporting_ids": supporting})
    found, padded = retrievers.load("oracle", documents, questions=[question]).search([text, f"  {text}\n"], k)
    assert found == padded
    assert [d.doc_id for d in found][: len(supporting)] == supporting[:k]
    plain = [d.doc_id for d in retrievers.load("oracle", documents).search([text], len(ids))[0]]
    rest = [doc_id for doc_id in plain if doc_id not in supporting]
    assert [d.doc_id for d in found] == [*supporting, *rest][:k]


def test_oracle_finds_every_fact_of_a_world_first() -> None:
    corpus = tinywiki.load("test")
    facts = [fact for world in corpus.worlds for fact in world.facts if fact.relation != "alias"]
    results = retrievers.load("oracle", corpus.documents).search([f"{f.subject} {f.relation}" for f in facts], 1)
    assert [found[0].doc_id for found in results] == [fact.doc_id for fact in facts]


def test_oracle_needs_the_supporting_documents() -> None:
    question = Question("q7", "Where?", ("x",), {"supporting_ids": ["gone"]})
    with pytest.raises(CorpusError, match=r"'q7'.*'gone'"):
        retrievers.load("oracle", [Document("0", "a", "b")], questions=[question])


# Random and noisy

NUMBERED = [Document(f"d{i}", f"t{i}", "a") for i in range(50)]


@given(st.lists(st.text(), max_size=5), st.integers(1, 60), st.integers(0, 2**40))
def test_random_documents_are_distinct_and_a_larger_k_extends_them(queries: list[str], k: int, seed: int) -> None:
    retriever = retrievers.load("random", NUMBERED, seed=seed)
    for found, all_of_them in zip(retriever.search(queries, k), retriever.search(queries, 50), strict=True):
        assert len({d.doc_id for d in found}) == min(k, 50)
        assert found == all_of_them[:k]
        assert {d.doc_id for d in all_of_them} == {d.doc_id for d in NUMBERED}


def test_random_documents_are_uniform() -> None:
    results = retrievers.load("random", NUMBERED).search([f"query {i}" for i in range(20_000)], 1)
    counts = Counter(found[0].doc_id for found in results)
    statistic = sum((counts[d.doc_id] - 400) ** 2 / 400 for d in NUMBERED)
    # Chi-squared with 49 degrees of freedom: mean 49, deviation sqrt(98).
    assert statistic < 49 + 5 * math.sqrt(98)


@pytest.mark.parametrize("name", ["random", "noisy"])
def test_seeds_matter(name: str) -> None:
    queries = [f"a {i}" for i in range(30)]
    one, again, two = (retrievers.load(name, NUMBERED, seed=seed).search(queries, 3) for seed in (0, 0, 1))
    assert one == again
    assert one != two
    with pytest.raises(OptionError, match="seed"):
        retrievers.load(name, NUMBERED, seed=-1)


@given(st.lists(st.text(), max_size=5), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**40))
def test_noise_keeps_scores_and_lengths(queries: list[str], k: int, probability: float, seed: int) -> None:
    inner = retrievers.load("random", NUMBERED)
    noisy = retrievers.load("noisy", NUMBERED, retriever=inner, probability=probability, seed=seed)
    plain = inner.search(queries, k)
    for found, before in zip(noisy.search(queries, k), plain, strict=True):
        assert [d.score for d in found] == [d.score for d in before]
    for found, longer in zip(noisy.search(queries, k), noisy.search(queries, k + 3), strict=True):
        assert found == longer[:k]
    assert retrievers.load("noisy", NUMBERED, retriever=inner, probability=0.0, seed=seed).search(queries, k) == plain


@pytest.mark.parametrize("probability", [0.1, 0.5, 1.0])
def test_noise_replaces_each_rank_with_its_probability(probability: float) -> None:
    inner = retrievers.load("random", NUMBERED)
    queries = [f"query {i}" for i in range(5_000)]
    noisy = retrievers.load("noisy", NUMBERED, retriever=inner, probability=probability)
    pairs = zip(inner.search(queries, 3), noisy.search(queries, 3), strict=True)
    changed = np.array([[a != b for a, b in zip(*pair, strict=True)] for pair in pairs])
    # A random document is the replaced one once in 50 times.
    rate = probability * (1 - 1 / 50)
    deviation = math.sqrt(rate * (1 - rate) / len(queries))
    assert np.abs(changed.mean(axis=0) - rate).max() < 4.5 * deviation
    for one, two in ((0, 1), (0, 2), (1, 2)):
        both = (changed[:, one] & changed[:, two]).mean()
        assert abs(both - rate**2) < 4.5 * math.sqrt(rate**2 * (1 - rate**2) / len(queries))


def test_noise_wraps_a_name_or_an_object() -> None:
    documents = tinywiki.load("test", num_worlds=1).documents
    queries = [d.title for d in documents[:20]]
    by_name = retrievers.load("noisy", documents, retriever="bm25")
    by_object = NoisyRetriever(documents, retrievers.load("bm25", documents))
    assert by_name.search(queries, 3) == by_object.search(queries, 3)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_noise_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(OptionError, match="probability"):
        retrievers.load("noisy", NUMBERED, probability=probability)


def test_noise_over_an_unknown_retriever_suggests_a_name() -> None:
    with pytest.raises(SearchGymError, match="bm25"):
        retrievers.load("noisy", NUMBERED, retriever="bm52")


def test_words_are_lower_case_runs_of_letters_and_digits() -> None:
    assert words("  Port-SOL's\n7 x_y, ÉCLUSE 運河?") == ["port", "sol", "s", "7", "x_y", "écluse", "運河"]
