"""Every plug-in that the package holds keeps its protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_gym import plugins, questions, retrievers
from search_gym.errors import OptionError, UnknownNameError
from tests import conformance


@pytest.fixture
def retriever_samples() -> dict[str, Any]:
    return {"retrievers": ["bm25", "random"]}


@pytest.fixture
def samples(tmp_path: Path) -> dict[str, Any]:
    return dict(conformance.write_samples(tmp_path))


@pytest.mark.parametrize("name", retrievers.available())
def test_retriever(name: str, retriever_samples: dict[str, Any]) -> None:
    conformance.check_retriever(plugins.find(retrievers, name, "make"), retriever_samples)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", questions.available())
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
    assert {"jsonl", "tinywiki"} <= set(questions.available())
    with pytest.raises(UnknownNameError, match="bm25"):
        retrievers.load("bm52", conformance.DOCUMENTS)


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
