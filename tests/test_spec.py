"""Retrievers described by text and by JSON."""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search_gym
from search_gym import retrievers, tinywiki
from search_gym.errors import OptionError, SearchGymError, UnknownNameError
from search_gym.retrievers import Document, Retriever, Spec
from search_gym.retrievers.hybrid import HybridRetriever
from search_gym.retrievers.noisy import NoisyRetriever

NAMES = st.from_regex(r"[a-z0-9_]{1,8}(\.[a-z]{1,4})?(:[a-z_]{1,8})?", fullmatch=True)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda key: key not in ("retriever", "over"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | st.integers() | FINITE | st.text()
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
OPTIONS = st.dictionaries(KEYS, VALUES, max_size=3)
SPECS = st.recursive(
    st.builds(Spec, NAMES, st.just(()), OPTIONS),
    lambda inner: st.builds(Spec, NAMES, st.lists(inner, max_size=3).map(tuple), OPTIONS),
    max_leaves=6,
)


@given(SPECS)
def test_text_and_json_give_back_what_was_printed(spec: Spec) -> None:
    assert Spec.parse(str(spec)) == spec
    assert str(Spec.parse(str(spec))) == str(spec)
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    written = json.dumps(spec.to_json(), indent=1)
    if written.startswith("{"):
        assert Spec.parse(f"\n{written}") == spec


@pytest.mark.parametrize(
    "text",
    [
        "bm25",
        "rerank(hybrid(bm25, dense), top=20)",
        "bm25(k1=0.9, b=0.4)",
        "hybrid(bm25, dense(encoder=intfloat/e5-base-v2), weights=[1, 2.5])",
        'dense(index="a folder/with, (marks)", faiss="IVF100,PQ8")',
        "http(url=http://127.0.0.1:8000/retrieve?x=1)",
        "cached(my_package.my_module:make(depth=3), path=/tmp/cache-1.db)",
        'x(a=true, b=null, c=-1e-05, d="true", e="12", f={"g": ["h"]})',
    ],
)
def test_a_canonical_text_is_printed_exactly(text: str) -> None:
    assert str(Spec.parse(text)) == text


@given(st.text(alphabet='ab (),="[]1.\\', max_size=12))
def test_any_text_is_read_or_refused_with_an_error_of_ours(text: str) -> None:
    try:
        spec = Spec.parse(text)
    except OptionError:
        return
    assert Spec.parse(str(spec)) == spec


def test_white_space_does_not_matter() -> None:
    spec = Spec.parse(" rerank ( hybrid(bm25,dense ( k = 3 )) ,top= 20 ) ")
    inner = Spec("hybrid", (Spec("bm25"), Spec("dense", (), {"k": 3})))
    assert spec == Spec("rerank", (inner,), {"top": 20})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("1e5-base", "1e5-base"),
        ("nullable", "nullable"),
        ("NaN", "NaN"),
        ("-3", -3),
        ("1e3", 1000.0),
        ("Flat", "Flat"),
        ('"a\\nb"', "a\nb"),
    ],
)
def test_words_need_no_quotes(text: str, value: Any) -> None:
    found = Spec.parse(f"x(a={text})").options["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a name"),
        ("bm25)", "the end"),
        ("bm25(", "a name"),
        ("bm25(k1)x", "the end"),
        ("bm25(k1=)", "a value"),
        ("bm25(k1=1 b=2)", "',' or '\\)'"),
        ("bm25(k1=1, k1=2)", "one value for 'k1'"),
        ("noisy(probability=1, bm25)", "retrievers before options"),
        ('bm25(k1="1)', "a value"),
    ],
)
def test_an_error_shows_the_place(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Spec.parse(text)
    assert "⟨here⟩" in str(caught.value)


@pytest.mark.parametrize("text", ['{"retriever": "bm25"', "{bm25}", '{"retriever": "bm25"} x', "{" * 100_000])
def test_text_that_begins_as_json_is_json(text: str) -> None:
    with pytest.raises(OptionError, match="expected a retriever's description in JSON, got") as caught:
        Spec.parse(text)
    assert len(str(caught.value)) < 500
    with pytest.raises(OptionError, match="expected a retriever as"):
        Spec.parse('{"name": "bm25"}')


@pytest.mark.parametrize(
    "value",
    [{}, {"retriever": 3}, {"retriever": "a b"}, {"retriever": "x", "over": "bm25"}, {"retriever": "x", "a b": 1}, 7],
)
def test_other_json_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="expected"):
        Spec.from_json(value)


DOCUMENTS = tinywiki.load("test", num_worlds=1).documents
QUERIES = [document.title for document in DOCUMENTS[:20]]


def test_a_description_builds_what_objects_build() -> None:
    bm25 = retrievers.load("bm25", DOCUMENTS, k1=0.9)
    by_hand = NoisyRetriever(DOCUMENTS, HybridRetriever([bm25, retrievers.load("oracle", DOCUMENTS)], depth=5), seed=3)
    as_json = {
        "retriever": "noisy",
        "over": [{"retriever": "hybrid", "over": [{"retriever": "bm25", "k1": 0.9}, "oracle"], "depth": 5}],
        "seed": 3,
    }
    expected = by_hand.search(QUERIES, 3)
    text = "noisy(hybrid(bm25(k1=0.9), oracle, depth=5), seed=3)"
    for described in (text, as_json, json.dumps(as_json), Spec.from_json(as_json)):
        assert retrievers.load(described, DOCUMENTS).search(QUERIES, 3) == expected
    seeded = retrievers.load("noisy(hybrid(bm25(k1=0.9), oracle, depth=5))", DOCUMENTS, seed=3)
    assert seeded.search(QUERIES, 3) == expected


def test_an_object_is_returned_as_it_is() -> None:
    bm25 = retrievers.load("bm25", DOCUMENTS)
    assert retrievers.load(bm25) is bm25
    with pytest.raises(OptionError, match="options only for a retriever to build"):
        retrievers.load(bm25, k1=1.0)


def mine(documents: Any, *, retriever: Any = "bm25") -> Retriever:
    """A retriever of outside code."""
    return NoisyRetriever(documents, retrievers.load(retriever, documents), probability=1.0)


def test_outside_code_is_built_over_others_too() -> None:
    found = retrievers.load("tests.test_spec:mine(oracle)", DOCUMENTS)
    assert isinstance(found, NoisyRetriever)
    assert type(found.retriever).__name__ == "OracleRetriever"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("bm25(oracle)", OptionError, "no retriever inside bm25"),
        ("noisy(bm25, oracle)", OptionError, "one retriever inside noisy"),
        ("noisy(bm52)", UnknownNameError, "did you mean 'bm25'"),
        ("bm25(k2=1)", OptionError, "k2"),
        ("hybrid(bm25)", OptionError, "at least two"),
    ],
)
def test_a_description_that_makes_no_sense_is_named(text: str, error: type[SearchGymError], message: str) -> None:
    with pytest.raises(error, match=message):
        retrievers.load(text, DOCUMENTS)


def test_an_environment_takes_a_description() -> None:
    documents = (Document("d", "Walden", "by Thoreau"),)
    questions = [search_gym.Question("q", "Who wrote Walden?", ("Thoreau",))]
    for described in ("hybrid(bm25, oracle)", {"retriever": "hybrid", "over": ["bm25", "oracle"]}):
        env = gym.make("search_gym/SearchQA-v0", questions=questions, corpus=documents, retriever=described)
        env.reset()
        codec = env.get_wrapper_attr("task").codec
        observation, *_ = env.step(codec.encode("<search>Walden</search>"))
        assert 'Doc 1(Title: "Walden") by Thoreau' in codec.decode(observation)
