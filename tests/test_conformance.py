"""Every plug-in that the package holds keeps its protocol."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_gym import plugins, questions, retrievers
from search_gym.errors import OptionError, UnknownNameError
from search_gym.retrievers import Document
from tests import conformance
from tests.encoder_models import write_cross_encoder, write_encoder
from tests.retrieval_servers import serve, write_corpus


@pytest.fixture(scope="module")
def retriever_samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("models")
    corpus = write_corpus(folder / "corpus.jsonl", conformance.DOCUMENTS)
    with serve("bm25", "--corpus", str(corpus)) as server:
        yield {
            "retrievers": ["bm25", "random"],
            "encoder": str(write_encoder(folder / "encoder")),
            "cross_encoder": str(write_cross_encoder(folder / "cross_encoder")),
            "url": server.url,
        }


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return dict(conformance.write_samples(tmp_path))


@pytest.mark.parametrize("name", retrievers.available())
def test_retriever(name: str, retriever_samples: dict[str, Any]) -> None:
    conformance.check_retriever(plugins.find(retrievers, name, "make"), retriever_samples)


SPLITS = {
    name: vars(importlib.import_module(f"search_gym.questions.{name}")).get("SPLITS", ("train", "test"))
    for name in questions.available()
}


@pytest.mark.parametrize(("name", "split"), [(name, split) for name, splits in SPLITS.items() for split in splits])
def test_questions(name: str, split: str, samples: dict[str, Any]) -> None:
    conformance.check_questions(plugins.find(questions, name, "load"), split, samples)


@pytest.mark.parametrize("name", retrievers.available())
def test_a_misspelt_retriever_option_is_named(name: str) -> None:
    with pytest.raises(OptionError, match="misspelt_option"):
        retrievers.load(name, conformance.DOCUMENTS, misspelt_option=1)


@pytest.mark.parametrize("name", questions.available())
def test_a_misspelt_question_option_is_named(name: str, samples: dict[str, Any]) -> None:
    options = conformance.sample_options(plugins.find(questions, name, "load"), samples)
    with pytest.raises(OptionError, match="misspelt_option"):
        questions.load(name, "test", misspelt_option=1, **options)


def test_expected_plugins_are_found() -> None:
    assert {"bm25", "noisy", "oracle", "random"} <= set(retrievers.available())
    benchmarks = {"nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle", "nq_hotpotqa"}
    assert {"jsonl", "tinywiki"} | benchmarks <= set(questions.available())
    with pytest.raises(UnknownNameError, match="bm25"):
        retrievers.load("bm52", conformance.DOCUMENTS)


def test_the_tolerance_is_for_rounding_alone() -> None:
    a, b, c = (Document(name, "", "", score) for name, score in (("a", 0.9), ("b", 0.5), ("c", 0.5 - 1e-7)))
    swapped = [a, replace(c, score=0.5), replace(b, score=0.5 - 1e-7)]
    conformance.check_alike([swapped, swapped[:2]], [[a, b, c], [a, b]], 1e-6)
    for wrong in ([a], [b, a], [a, a], [a, replace(b, score=0.4)], [replace(b, score=0.9), a]):
        with pytest.raises(AssertionError):
            conformance.check_alike([wrong], [[a, c]], 1e-6)
    with pytest.raises(AssertionError):
        conformance.check_alike([swapped], [[a, b, c]], 0.0)


class _Faulty:
    """A retriever that returns one document too many."""

    def __init__(self, documents: Any) -> None:
        self.documents = documents

    def search(self, queries: Any, k: int) -> Any:
        return [list(self.documents[: k + 1]) for _ in queries]


class _Forgetful:
    """A retriever whose answer depends on how often it was called."""

    def __init__(self, documents: Any) -> None:
        self.documents = documents
        self.calls = 0

    def search(self, queries: Any, k: int) -> Any:
        self.calls += 1
        return [[self.documents[self.calls % len(self.documents)]] for _ in queries]


@pytest.mark.parametrize("faulty", [_Faulty, _Forgetful])
def test_the_checks_catch_a_faulty_retriever(faulty: Any) -> None:
    def make(documents: Any) -> Any:
        return faulty(documents)

    with pytest.raises(AssertionError):
        conformance.check_retriever(make, {})
