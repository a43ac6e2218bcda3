"""Reranking against one pair at a time, written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from search_gym import retrievers
from search_gym.errors import CorpusError, OptionError, PartialRetrievalError, RetrievalError
from search_gym.retrievers import CorpusRetriever, Document
from search_gym.retrievers._models import Compute, load_model
from search_gym.retrievers.rerank import SCORE_TOLERANCE, CrossEncoder, RerankRetriever
from tests.conformance import check_alike
from tests.encoder_models import LENGTH, export, write_cross_encoder

PLACES = ("harbour", "mayor", "town", "kanor", "plard", "born")
DOCUMENTS = tuple(
    Document(f"d{i}", f"{a} {b}", f"The {a} of the {b}, {a}.")
    for i, (a, b) in enumerate((a, b) for a in PLACES for b in PLACES)
)
QUERIES = ["harbour of kanor", "plard", "", "who is the mayor of the town?", "\ud800 born"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for labels in (1, 2, 3):
        write_cross_encoder(path / f"labels{labels}", num_labels=labels)
    export(path / "labels1", path / "onnx")
    export(path / "labels1", path / "int8", is_int8=True)
    return path


@pytest.fixture(scope="module")
def cross_encoder(folder: Path) -> CrossEncoder:
    return CrossEncoder(load_model(str(folder / "labels1"), "torch", "score", Compute()))


@pytest.fixture(scope="module")
def bm25() -> retrievers.Retriever:
    return retrievers.load("bm25", DOCUMENTS)


def reference(folder: Path, found: list[Document], query: str, k: int) -> list[tuple[str, float]]:
    """Ids and scores of the best ``k``: one pair at a time, a stable sort."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scored = []
    for document in found:
        contents = f'"{document.title}"\n{document.text}'
        clean = query.encode("utf-8", "ignore").decode()
        inputs = tokenizer([clean], [contents], truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0].double()
        # Log-odds of the second of two labels, from the softmax.
        score = logits[0] if len(logits) == 1 else torch.logit(logits.softmax(0)[1])
        scored.append((document.doc_id, float(score)))
    return sorted(scored, key=lambda pair: -pair[1])[:k]


@pytest.mark.parametrize("name", ["labels1", "labels2", "onnx"])
def test_reranking_equals_one_pair_at_a_time(folder: Path, bm25: retrievers.Retriever, name: str) -> None:
    reranker = retrievers.load("rerank", retriever=bm25, cross_encoder=str(folder / name), top=7, batch_size=4)
    source = folder / ("labels1" if name == "onnx" else name)
    for query, found in zip(QUERIES, reranker.search(QUERIES, 5), strict=True):
        expected = reference(source, bm25.search([query], 7)[0], query, 5)
        assert [d.doc_id for d in found] == [doc_id for doc_id, _ in expected]
        assert [d.score for d in found] == pytest.approx([score for _, score in expected], abs=SCORE_TOLERANCE)


@settings(max_examples=20)
@given(queries=st.lists(st.sampled_from(QUERIES), max_size=7), k=st.integers(1, 9), top=st.integers(1, 9))
def test_each_query_has_its_own_documents(cross_encoder: CrossEncoder, queries: list[str], k: int, top: int) -> None:
    """The documents are those of the inner retriever's list, whatever the other queries are."""
    inner = retrievers.load("random", DOCUMENTS)
    reranker = RerankRetriever(inner, cross_encoder, top=top)
    together = reranker.search(queries, k)
    check_alike(together, [reranker.search([query], k)[0] for query in queries], SCORE_TOLERANCE)
    for query, found in zip(queries, together, strict=True):
        (asked,) = inner.search([query], max(k, top))
        assert len(found) == min(k, len(asked))
        assert {d.doc_id for d in found} <= {d.doc_id for d in asked}
        assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def test_an_int8_model_scores_a_pair_the_same_in_every_batch(folder: Path, bm25: retrievers.Retriever) -> None:
    reranker = retrievers.load("rerank", retriever=bm25, cross_encoder=str(folder / "int8"), top=5)
    assert reranker.search(QUERIES, 3) == [reranker.search([query], 3)[0] for query in QUERIES]


class _Copies:
    """The same text many times, in an order of its own."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        return [[Document(f"{(7 * i) % 10}", "a", "b", 1.0) for i in range(min(k, 10))] for _ in queries]


def test_ties_keep_the_order_of_the_retriever(folder: Path) -> None:
    reranker = retrievers.load("rerank", retriever=_Copies(), cross_encoder=str(folder / "int8"))
    (found,) = reranker.search(["a"], 4)
    assert [d.doc_id for d in found] == ["0", "7", "4", "1"]


class _Moody:
    """It fails on queries with an exclamation mark, and finds nothing for the others but one."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        results: list[Any] = [
            RetrievalError("no") if "!" in query else [Document("d", "a", "b")] * (query == "a") for query in queries
        ]
        if any("!" in query for query in queries):
            raise PartialRetrievalError("some failed", results)
        return results


def test_queries_that_failed_are_told_apart(folder: Path) -> None:
    reranker = retrievers.load("rerank", retriever=_Moody(), cross_encoder=str(folder / "labels1"))
    alone = reranker.search(["a", "b"], 3)
    assert [len(found) for found in alone] == [1, 0]
    with pytest.raises(PartialRetrievalError, match="1 of 3 queries failed") as caught:
        reranker.search(["a", "!", "b"], 3)
    one, failed, two = caught.value.results
    check_alike([one, two], alone, SCORE_TOLERANCE)
    assert isinstance(failed, RetrievalError)
    assert reranker.search(["b"], 3) == [[]]


def test_weights_that_are_not_numbers_are_an_error(folder: Path, tmp_path: Path, bm25: retrievers.Retriever) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder / "labels1")
    torch.nn.init.constant_(model.classifier.bias, np.nan)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder / "labels1").save_pretrained(tmp_path)
    with pytest.raises(RetrievalError, match="expected finite scores"):
        retrievers.load("rerank", retriever=bm25, cross_encoder=str(tmp_path)).search(["town"], 1)


def test_it_shows_the_documents_of_its_retriever(folder: Path, bm25: retrievers.Retriever) -> None:
    reranker = retrievers.load("rerank", DOCUMENTS, cross_encoder=str(folder / "labels1"))
    assert isinstance(reranker, CorpusRetriever)
    assert list(reranker.documents) == list(DOCUMENTS)
    with pytest.raises(CorpusError):
        retrievers.load("rerank", cross_encoder=str(folder / "labels1"))


def test_it_is_described_over_others(folder: Path) -> None:
    text = f"rerank(hybrid(bm25, random), top=6, cross_encoder={folder / 'labels1'})"
    reranker = retrievers.load(text, DOCUMENTS)
    inner = retrievers.load("hybrid(bm25, random)", DOCUMENTS)
    (found,) = reranker.search(["mayor of kanor"], 6)
    assert {d.doc_id for d in found} == {d.doc_id for d in inner.search(["mayor of kanor"], 6)[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0}, "top >= 1"),
        ({"max_length": 1}, "max_length >= 8"),
        ({"runtime": "jax"}, "runtime"),
        ({"precision": "fp16", "device": "cpu"}, "expected a GPU"),
        ({"cross_encoder": "/no/such/folder"}, "expected a model's directory"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        retrievers.load("rerank", DOCUMENTS, **{"cross_encoder": str(folder / "labels1"), **options})


def test_a_classifier_of_three_kinds_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="one label or two, got 3"):
        retrievers.load("rerank", DOCUMENTS, cross_encoder=str(folder / "labels3"))
