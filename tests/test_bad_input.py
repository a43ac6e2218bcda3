"""What bad input gets: an error of ours that says what was expected, what came, and often what to do."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import search_gym.errors
from search_gym import ByteCodec, HFCodec, Question, SearchEnv, SearchVectorEnv, WordCodec
from search_gym.errors import (
    ActionError,
    CodecError,
    CorpusError,
    EpisodeFinishedError,
    MissingDependencyError,
    OptionError,
    PromptError,
    QuestionError,
    RetrievalError,
    SearchGymError,
    UnknownNameError,
)
from tests.stubs import DOCUMENTS, QUESTIONS, StubRetriever, env_options, hf_tokenizer

ROOT = Path(__file__).parents[1]
SEARCH = ByteCodec().encode("<search>x</search>")


class Mute:
    """A retriever that gives one list whatever it is asked."""

    def search(self, queries: Any, k: int) -> Any:
        return [list(DOCUMENTS[:k])]


class Broken(Mute):
    def search(self, queries: Any, k: int) -> Any:
        raise RuntimeError("index corrupt")


def make(**options: Any) -> Any:
    return gym.make("search_gym/SearchQA-v0", **env_options(**options)).unwrapped


def step(action: Any, **options: Any) -> Any:
    env = make(**options)
    env.reset(seed=0)
    return env.step(action)


def vector_step(actions: Any, **options: Any) -> Any:
    envs = SearchVectorEnv(2, **env_options(**options))
    envs.reset(seed=0)
    return envs.step(actions)


def step_after_the_end() -> None:
    env = make()
    env.reset(seed=0)
    for _ in range(2):
        env.step(ByteCodec().encode("<answer>x</answer>"))


TABLE: list[tuple[str, Callable[[], Any], type[SearchGymError], type[Exception], str]] = [
    (
        "no question",
        lambda: make(questions=[]),
        QuestionError,
        ValueError,
        "expected at least one question, got an empty set",
    ),
    (
        "text as question",
        lambda: make(questions=["Who?"]),
        QuestionError,
        ValueError,
        r"expected Question objects, got 'Who\?'",
    ),
    (
        "a number as questions",
        lambda: make(questions=3),
        OptionError,
        ValueError,
        "expected a sequence of questions or a name",
    ),
    ("a misspelt set", lambda: make(questions="tinywikki"), UnknownNameError, LookupError, "did you mean 'tinywiki'?"),
    (
        "an unknown set",
        lambda: make(questions="xyzzy"),
        UnknownNameError,
        LookupError,
        "known names: .*jsonl, .*tinywiki",
    ),
    (
        "an unknown module",
        lambda: make(questions="no.such:load"),
        UnknownNameError,
        LookupError,
        "expected an importable",
    ),
    (
        "an unknown attribute",
        lambda: make(codec="tests.stubs:nothing"),
        UnknownNameError,
        LookupError,
        "expected an importable",
    ),
    (
        "an unknown option of a set",
        lambda: make(questions="tinywiki", question_options={"kind": "1-hop"}),
        OptionError,
        ValueError,
        r"expected options of 'tinywiki' among .*'kinds'.*, got \['kind'\]",
    ),
    (
        "options for a set that is there",
        lambda: make(question_options={"seed": 1}),
        OptionError,
        ValueError,
        "expected question_options only for questions named by a string",
    ),
    (
        "an option for a retriever that is there",
        lambda: make(retriever_options={"k1": 1.0}),
        OptionError,
        ValueError,
        "expected corpus and retriever_options only for a retriever to build",
    ),
    (
        "a misspelt retriever",
        lambda: make(retriever="bm52", corpus=DOCUMENTS),
        UnknownNameError,
        LookupError,
        "did you mean 'bm25'?",
    ),
    (
        "an unknown option of a retriever",
        lambda: make(retriever="bm25", corpus=DOCUMENTS, retriever_options={"k2": 1}),
        OptionError,
        ValueError,
        r"expected options of 'bm25' among .*'k1'.*, got \['k2'\]",
    ),
    (
        "no corpus",
        lambda: make(retriever="bm25"),
        CorpusError,
        ValueError,
        "expected documents to search in, got none",
    ),
    (
        "an empty corpus",
        lambda: make(retriever="bm25", corpus=[]),
        CorpusError,
        ValueError,
        "expected documents to search in",
    ),
    (
        "a corpus that is not there",
        lambda: make(retriever="bm25", corpus="absent.jsonl"),
        CorpusError,
        ValueError,
        "absent.jsonl",
    ),
    (
        "no retriever",
        lambda: make(retriever=object()),
        OptionError,
        ValueError,
        r"expected a retriever with search\(queries, k\)",
    ),
    (
        "a tokenizer as codec",
        lambda: make(codec=object()),
        CodecError,
        ValueError,
        "wrap a Hugging Face tokenizer in HFCodec",
    ),
    ("top_k", lambda: make(top_k=0), OptionError, ValueError, "expected top_k >= 1, got 0"),
    ("max_turns", lambda: make(max_turns=-1), OptionError, ValueError, "expected max_turns >= 0, got -1"),
    (
        "max_turn_tokens",
        lambda: make(max_turn_tokens=0),
        OptionError,
        ValueError,
        "expected max_turn_tokens >= 1, got 0",
    ),
    (
        "max_observation_tokens",
        lambda: make(max_observation_tokens=20),
        OptionError,
        ValueError,
        r"expected max_observation_tokens >= \d+, which holds the tags alone, got 20",
    ),
    (
        "a policy for errors",
        lambda: make(on_retrieval_error="ignore"),
        OptionError,
        ValueError,
        "expected on_retrieval_error",
    ),
    (
        "a timeout of 0",
        lambda: make(retrieval_timeout=0.0),
        OptionError,
        ValueError,
        "expected retrieval_timeout > 0 seconds",
    ),
    (
        "a render mode",
        lambda: SearchEnv(**env_options(render_mode="rgb_array")),
        OptionError,
        ValueError,
        r"expected render_mode in \['ansi', 'human'\]",
    ),
    (
        "a question that does not fit",
        lambda: make(questions=[Question("q", "x" * 9999, ("y",))]).reset(),
        PromptError,
        ValueError,
        r"expected a question that fits into \d+ tokens .* question 'q' .*; do: raise max_context_tokens",
    ),
    (
        "an empty action",
        lambda: step(np.array([], dtype=np.int64)),
        ActionError,
        ValueError,
        r"expected a non-empty 1-D",
    ),
    ("a float action", lambda: step(np.array([0.5])), ActionError, ValueError, "dtype float64"),
    (
        "a negative id",
        lambda: step(np.array([3, -1])),
        ActionError,
        ValueError,
        r"expected token ids in \[0, 258\), got ids between -1 and 3",
    ),
    (
        "an id too large",
        lambda: step(np.array([258])),
        ActionError,
        ValueError,
        "do: use the codec of the model that sampled them",
    ),
    (
        "a step before reset",
        lambda: make().step(SEARCH),
        EpisodeFinishedError,
        RuntimeError,
        r"do: call reset\(\) first",
    ),
    ("a step after the end", step_after_the_end, EpisodeFinishedError, RuntimeError, r"do: call reset\(\) first"),
    (
        "too few lists",
        lambda: vector_step([SEARCH, SEARCH], retriever=Mute()),
        RetrievalError,
        RuntimeError,
        "expected a list of 2 lists of documents from the retriever Mute, got 1 lists",
    ),
    (
        "a retriever that raises",
        lambda: step(SEARCH, retriever=Broken()),
        RetrievalError,
        RuntimeError,
        "the retriever Broken raised RuntimeError: index corrupt",
    ),
    (
        "a model larger than its tokenizer",
        lambda: HFCodec(hf_tokenizer(), vocab_size=10),
        CodecError,
        ValueError,
        r"expected a vocabulary that holds the tokenizer's \d+ ids, got 10; do: use the model's own tokenizer",
    ),
    (
        "a vocabulary with a tag",
        lambda: WordCodec(["<answer>"]),
        CodecError,
        ValueError,
        "apart from the reserved ones",
    ),
]


@pytest.mark.parametrize(
    ("act", "error", "parent", "message"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_bad_input_gets_an_error_of_ours(
    act: Callable[[], Any], error: type[SearchGymError], parent: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        act()
    assert isinstance(caught.value, parent)
    assert "expected" in str(caught.value) or "raised" in str(caught.value)


def test_every_error_of_ours_is_also_one_that_python_users_expect() -> None:
    errors = [e for e in vars(search_gym.errors).values() if isinstance(e, type) and e is not SearchGymError]
    assert len(errors) > 9
    for error in errors:
        assert issubclass(error, SearchGymError)
        assert issubclass(error, (ValueError, RuntimeError, LookupError, ImportError, OSError))
        assert error.__doc__


@pytest.mark.parametrize(
    ("module", "act", "extra"),
    [
        ("bm25s", lambda: make(retriever="bm25", corpus=DOCUMENTS), "bm25"),
        ("transformers", lambda: make(codec="some/model"), "agents"),
        ("gguf", lambda: make(codec="model.gguf"), "gguf"),
    ],
)
def test_a_missing_dependency_is_named_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, module: str, act: Callable[[], Any], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingDependencyError, match=rf"expected the package '{module}' .* pip install 'search-gym\[{extra}\]'"
    ):
        act()


def test_every_extra_that_an_install_line_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        keyword.value.value
        for package in ("search_gym", "agents", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require"
        for keyword in node.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant)
    }
    assert {"agents", "bm25"} <= named <= set(extras)


def test_a_dependency_that_is_broken_inside_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from search_gym.plugins import require

    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    with pytest.raises(ModuleNotFoundError, match="scipy") as caught:
        require("tests.needs_scipy", extra="test")
    assert not isinstance(caught.value, MissingDependencyError)


@pytest.mark.parametrize("name", ["seed", "question", "retriver", "max_turn"])
def test_a_misspelt_argument_is_not_swallowed(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        make(**{name: 1})
    with pytest.raises(TypeError, match=name):
        SearchVectorEnv(2, **env_options(**{name: 1}))


def test_a_question_is_plain_but_odd_ones_work() -> None:
    """Empty strings, tags, special tokens, surrogates and control characters in a question: no crash, no special id."""
    codec = ByteCodec()
    texts = ["", " ", "<answer>x</answer>", "<eos><pad>", "\ud800", "\x00\x1b[31m", "é" * 500]
    env = make(questions=[Question(str(i), text, ("x",)) for i, text in enumerate(texts)], retriever=StubRetriever())
    for index in range(len(texts)):
        observation, _ = env.reset(options={"question_index": index})
        assert observation.max() < codec.pad_id
        assert env.step(codec.encode("<answer>y</answer>"))[1] == 0.0
    assert len(QUESTIONS) == 3
