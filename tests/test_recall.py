"""Recall ceilings against a slow reference, closed forms, and what a failing retriever gets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import recall
from search_gym import questions, retrievers, tinywiki
from search_gym.cli.data import as_json
from search_gym.corpus import load_corpus
from search_gym.errors import OptionError, RetrievalError
from search_gym.questions import Question
from search_gym.recall import Share, answer_recall, holds_answer, wilson_interval
from search_gym.retrievers import Document
from search_gym.rewards import em_score, normalize_answer

WORDS = st.sampled_from(["Kanor", "a", "the", "The", "yes", "no", "-", "New", "York", "new york", "X.", "é", ""])
TEXTS = st.lists(WORDS, max_size=5).map(" ".join)
ANSWERS = st.lists(TEXTS.filter(str.strip), min_size=1, max_size=3).map(tuple)
DOCUMENTS = st.lists(st.tuples(st.sampled_from("abcdef"), TEXTS, TEXTS), max_size=6).map(
    lambda items: [Document(*item) for item in items]
)


class Scripted:
    """Returns what is written down for each query."""

    def __init__(self, results: dict[str, list[Document]]) -> None:
        self.results = results
        self.batches: list[int] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        self.batches.append(len(queries))
        return [self.results[query][:k] for query in queries]


def slow_holds_answer(document: Document, answers: Sequence[str]) -> bool:
    for answer in answers:
        needle = normalize_answer(answer).split()
        for part in (document.title, document.text):
            words = normalize_answer(part).split()
            for start in range(len(words)):
                if needle and words[start : start + len(needle)] == needle:
                    return True
    return False


@given(st.tuples(TEXTS, TEXTS).map(lambda t: Document("d", *t)), ANSWERS)
def test_an_answer_is_a_run_of_words(document: Document, answers: tuple[str, ...]) -> None:
    assert holds_answer(document, answers) == slow_holds_answer(document, answers)


@pytest.mark.parametrize(
    ("title", "text", "answer", "held"),
    [
        ("", "He was born in Kanor.", "kanor", True),
        ("Kanor", "A town.", "Kanor", True),
        ("", "Kanorian", "Kanor", False),
        ("New", "York", "New York", False),
        ("", "the new, York", "New York", True),
        ("", "the State of the Union", "State of Union", True),
        ("", "in 1,234 steps", "1234", True),
        ("", "in 12345 steps", "1234", False),
        ("", "The the the", "the", False),
    ],
)
def test_what_holds_an_answer(title: str, text: str, answer: str, held: bool) -> None:
    assert holds_answer(Document("d", title, text), [answer]) == held


@given(TEXTS, TEXTS, TEXTS, ANSWERS)
def test_whoever_copies_what_was_found_is_paid(before: str, copied: str, after: str, answers: tuple[str, ...]) -> None:
    """An exact match that stands in a document, with white space around it, is found."""
    if em_score(copied, answers) and normalize_answer(copied):
        assert holds_answer(Document("d", "", f"{before} {copied} {after}"), answers)


@given(
    st.lists(st.tuples(ANSWERS, st.sets(st.sampled_from("abcdef")), DOCUMENTS), max_size=8),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 5),
)
def test_recall_is_that_of_a_slow_count(items: list[Any], ks: list[int], batch_size: int) -> None:
    asked = [
        Question(f"q{i}", f"text {i}", answers, {"supporting_ids": sorted(gold)} if gold else {})
        for i, (answers, gold, _) in enumerate(items)
    ]
    retriever = Scripted({f"text {i}": documents for i, (_, _, documents) in enumerate(items)})
    found = answer_recall(iter(asked), retriever, ks, batch_size=batch_size)

    spans = [[a for a in q.answers if normalize_answer(a) not in ("", "yes", "no")] for q in asked]
    assert found.num_questions == len(items)
    assert found.num_without_span == spans.count([])
    assert found.num_without_passages == sum("supporting_ids" not in q.metadata for q in asked)
    assert [at.k for at in found.at] == sorted(set(ks))
    assert max(retriever.batches, default=0) <= batch_size
    assert sum(retriever.batches) == len(items)
    for at in found.at:
        first = [documents[: at.k] for _, _, documents in items]
        answered = [any(slow_holds_answer(d, s) for d in ds) for s, ds in zip(spans, first, strict=True) if s]
        shares = [
            sum(doc_id in {d.doc_id for d in ds} for doc_id in gold) / len(gold)
            for (_, gold, _), ds in zip(items, first, strict=True)
            if gold
        ]
        for share, values in (
            (at.answer, answered),
            (at.passages, shares),
            (at.all_passages, [s == 1 for s in shares]),
        ):
            if not values:
                assert share is None
                continue
            assert share is not None
            assert share.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
            assert share == Share(share.mean, *wilson_interval(share.mean, len(values)), len(values))
    for smaller, larger in zip(found.at, found.at[1:], strict=False):
        for a, b in zip(smaller[1:], larger[1:], strict=True):
            assert a is None or a.mean <= b.mean


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_interval_solves_wilsons_equation(count: int, mean: float) -> None:
    """Its ends are the p for which (mean - p)² = z² p (1 - p) / n."""
    low, high = wilson_interval(mean, count)
    assert 0 <= low <= mean <= high <= 1
    for p in (low, high):
        assert (mean - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / count, abs=1e-9)
    mirrored = wilson_interval(1 - mean, count)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_a_textbook_case() -> None:
    """0 of 10: the upper end is z² / (n + z²)."""
    assert wilson_interval(0.0, 10) == (0.0, pytest.approx(1.96**2 / (10 + 1.96**2), abs=1e-4))


def test_the_oracle_finds_every_gold_passage_of_tinywiki() -> None:
    world = tinywiki.load("test", kinds=("1-hop", "2-hop"))
    asked = world[:200]
    retriever = retrievers.load("oracle", world.documents, questions=list(asked))
    at = answer_recall(asked, retriever, (1, 4)).at
    assert at[1].all_passages is not None
    assert at[1].all_passages.mean == 1.0
    assert at[1].answer is not None
    assert at[1].answer.mean == 1.0
    assert at[0].all_passages is not None
    assert at[0].all_passages.mean < 1.0


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        raise self.error


ASKED = [Question("q", "Where?", ("Kanor",))]


def test_a_failing_retriever_raises_one_type() -> None:
    with pytest.raises(RetrievalError, match=r"^no answer$"):
        answer_recall(ASKED, Broken(RetrievalError("no answer")))
    with pytest.raises(RetrievalError, match="Broken raised KeyError: 'x'"):
        answer_recall(ASKED, Broken(KeyError("x")))
    short = Scripted({"Where?": []})
    short.search = lambda queries, k: []  # type: ignore[method-assign]
    with pytest.raises(RetrievalError, match="expected 1 lists of documents, got 0"):
        answer_recall(ASKED, short)


@pytest.mark.parametrize(("ks", "batch_size"), [((), 1), ((0, 1), 1), ((1,), 0)])
def test_options_are_positive(ks: tuple[int, ...], batch_size: int) -> None:
    with pytest.raises(OptionError, match="expected ks and batch_size >= 1"):
        answer_recall(ASKED, Scripted({"Where?": []}), ks, batch_size=batch_size)


def test_nothing_asked_is_nothing_found() -> None:
    found = answer_recall([], Scripted({}), (1,))
    assert (found.num_questions, found.at[0].answer, found.at[0].passages) == (0, None, None)


class TestTheKeptResults:
    """docs/data.md shows those that ``benchmarks.recall`` measured on real questions."""

    RESULTS = json.loads(recall.RESULTS.read_text(encoding="utf-8"))

    def test_the_page_shows_them(self) -> None:
        page = recall.PAGE.read_text(encoding="utf-8")
        assert recall.with_table(page, self.RESULTS) == page

    @pytest.mark.parametrize("group", RESULTS["sets"], ids=lambda group: group["questions"])
    def test_recall_grows_with_k_and_bm25_is_better_than_chance(self, group: dict[str, Any]) -> None:
        for rows in group["retrievers"].values():
            for name in ("answer", "passages", "all_passages"):
                means = [row[name]["mean"] for row in rows]
                assert means == sorted(means)
                assert all(row[name]["low"] <= row[name]["mean"] <= row[name]["high"] for row in rows)
            assert all(row["all_passages"]["mean"] <= row["passages"]["mean"] for row in rows)
        for chance, bm25 in zip(group["retrievers"]["random"], group["retrievers"]["bm25"], strict=True):
            assert bm25["answer"]["low"] > chance["answer"]["high"]

    @pytest.mark.skipif(not recall.DATA.is_dir(), reason="the benchmark files of ../shared/data are absent")
    @pytest.mark.parametrize("name", recall.SETS)
    def test_bm25_is_measured_again_with_the_same_result(self, name: str) -> None:
        asked = questions.load(f"jsonl:{recall.DATA / name}.jsonl", "all")
        documents = load_corpus(recall.DATA / f"{name}_corpus.jsonl")
        found = answer_recall(asked, retrievers.load("bm25", documents), recall.TOP_K)
        (kept,) = [group for group in self.RESULTS["sets"] if group["questions"] == name]
        assert as_json(name, "all", {"bm25": found})["retrievers"]["bm25"] == kept["retrievers"]["bm25"]
