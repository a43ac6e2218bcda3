"""JSON lines in FlashRAG's layout: what is read, and what a malformed file gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym import questions
from search_gym.corpus import load_corpus
from search_gym.errors import CorpusError, OptionError, QuestionError, SearchGymError
from search_gym.questions import Question
from search_gym.retrievers import Document

ROW = {"id": "q1", "question": "Where?", "golden_answers": ["Kanor"], "metadata": {"split": "dev"}}
PASSAGE = {"id": "d1", "contents": '"Kanor"\nA town.'}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


def test_a_row_becomes_a_question(tmp_path: Path) -> None:
    metadata = {"split": "dev", "type": "bridge", "supporting_ids": ["d1"], "level": {"deep": [1, None]}}
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "id": "q2", "golden_answers": ["A", "B"], "metadata": metadata})
    found = questions.load("jsonl", "dev", path=path)
    assert list(found) == [
        Question("q1", "Where?", ("Kanor",), {"split": "dev"}),
        Question("q2", "Where?", ("A", "B"), {**metadata, "kind": "bridge"}),
    ]
    assert list(questions.load("jsonl", "dev", path=str(path), limit=1)) == [found[0]]


def test_metadata_kind_is_not_overwritten(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {**ROW, "metadata": {"type": "bridge", "kind": "2-hop"}})
    assert questions.load("jsonl", "dev", path=path)[0].metadata["kind"] == "2-hop"


def test_splits(tmp_path: Path) -> None:
    rows = [{**ROW, "id": f"q{i}", "metadata": {"split": s}} for i, s in enumerate(["train", "dev", "train"])]
    path = write(tmp_path / "q.jsonl", *rows, {**ROW, "id": "q9", "metadata": {}}, {**ROW, "id": "q10", "metadata": {}})

    def ids(split: str) -> list[str]:
        return [question.question_id for question in questions.load("jsonl", split, path=path)]

    assert ids("train") == ["q0", "q2", "q9", "q10"]
    assert ids("dev") == ["q1", "q9", "q10"]
    assert ids("all") == ["q0", "q1", "q2", "q9", "q10"]


def test_an_absent_split_names_the_present_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROW)
    with pytest.raises(QuestionError, match=r"'test'.*\['dev'\]"):
        questions.load("jsonl", "test", path=path)


def test_metadata_may_be_absent(tmp_path: Path) -> None:
    row = {key: ROW[key] for key in ("id", "question", "golden_answers")}
    assert questions.load("jsonl", "test", path=write(tmp_path / "q.jsonl", row))[0].metadata == {}


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Paul Walker"\nAn actor.\nBorn 1973.', "Paul Walker", "An actor.\nBorn 1973."),
        ('"The "Red" House"\nA house.', 'The "Red" House', "A house."),
        ("Plain title\nText", "Plain title", "Text"),
        ('"Only a title"', "Only a title", ""),
        ('"\nA lone quote', '"', "A lone quote"),
        ('""\nNo title', "", "No title"),
        ('"Kanor"\r\nText', "Kanor", "Text"),
        ("\nText under an empty title", "", "Text under an empty title"),
    ],
)
def test_contents_are_a_title_and_a_text(tmp_path: Path, contents: str, title: str, text: str) -> None:
    path = write(tmp_path / "c.jsonl", {"id": "d1", "contents": contents})
    assert load_corpus(path) == [Document("d1", title, text)]


def test_questions_bring_their_corpus(tmp_path: Path) -> None:
    path, corpus = write(tmp_path / "q.jsonl", ROW), write(tmp_path / "c.jsonl", PASSAGE, b" ", {**PASSAGE, "id": "d2"})
    found = questions.load("jsonl", "dev", path=path, corpus=corpus)
    assert [document.doc_id for document in found.documents] == ["d1", "d2"]  # type: ignore[attr-defined]


MALFORMED_LINES = [
    (b'{"id": "x", ', "JSON"),
    (b"[1, 2]", "JSON object"),
    (b"null", "JSON object"),
    (b'{"id": "caf\xe9"}', "UTF-8"),
    (b"9" * 5000, "JSON object"),
    (b"[" * 100_000, "JSON object"),
    (b'\xef\xbb\xbf{"id": "x"}', "BOM"),
    ({}, "'id'.*no such field"),
    ({"id": 7}, "'id'.*a string.*7"),
    ({"id": " "}, "'id'.*not blank"),
    ({**ROW, **PASSAGE, "id": "first"}, "'id'.*line 1 has this one"),
]
MALFORMED_ROWS = [
    ({"question": None}, "'question'.*a string.*None"),
    ({"question": ""}, "'question'.*not blank"),
    ({"golden_answers": "Kanor"}, "'golden_answers'.*a list"),
    ({"golden_answers": []}, "'golden_answers'.*one or more"),
    ({"golden_answers": ["A", 3]}, "'golden_answers'.*strings"),
    ({"golden_answers": ["A", " "]}, "'golden_answers'.*not blank"),
    ({"metadata": []}, "'metadata'.*an object"),
    ({"metadata": None}, "'metadata'.*an object"),
    ({"metadata": {"split": 3}}, "'metadata.split'.*a string"),
    ({"metadata": {"supporting_ids": "d1"}}, "'metadata.supporting_ids'.*a list"),
    ({"metadata": {"supporting_ids": [1]}}, "'metadata.supporting_ids'.*strings"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED_LINES)
@pytest.mark.parametrize("kind", ["questions", "corpus"])
def test_a_malformed_line_is_named(tmp_path: Path, kind: str, line: Any, message: str) -> None:
    good = {**(ROW if kind == "questions" else PASSAGE), "id": "first"}
    path = write(tmp_path / "file.jsonl", good, b"", line)
    with pytest.raises(QuestionError if kind == "questions" else CorpusError, match=message) as caught:
        questions.load("jsonl", "dev", path=path) if kind == "questions" else load_corpus(path)
    assert f"{path}, line 3" in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), MALFORMED_ROWS)
def test_a_malformed_question_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "id": "q2", **changes})
    with pytest.raises(QuestionError, match=f"line 2, field {message}"):
        questions.load("jsonl", "dev", path=path)


@pytest.mark.parametrize("contents", [None, 3, " "])
def test_a_malformed_passage_is_named(tmp_path: Path, contents: Any) -> None:
    with pytest.raises(CorpusError, match="line 2, field 'contents'"):
        load_corpus(write(tmp_path / "c.jsonl", PASSAGE, {"id": "d2", "contents": contents}))


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(QuestionError, match="empty file"):
        questions.load("jsonl", "dev", path=path)
    with pytest.raises(CorpusError, match="empty file"):
        load_corpus(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuestionError, match=r"absent\.jsonl.*readable"):
        questions.load("jsonl", "dev", path=tmp_path / "absent.jsonl")
    with pytest.raises(CorpusError, match=r"absent\.jsonl.*readable"):
        questions.load("jsonl", "dev", path=write(tmp_path / "q.jsonl", ROW), corpus=tmp_path / "absent.jsonl")


def test_a_limit_is_positive(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="limit"):
        questions.load("jsonl", "dev", path=write(tmp_path / "q.jsonl", ROW), limit=0)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(ROW)), JSON_VALUES)
def test_whatever_a_field_holds_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    path = write(tmp_path_factory.mktemp("jsonl") / "q.jsonl", {**ROW, field: value})
    try:
        (question,) = questions.load("jsonl", "all", path=path)
    except SearchGymError as error:
        message = str(error)
        assert f"{path}, line 1, field '{field}" in message
    else:
        assert question.text.strip()
        assert question.answers
        json.dumps(dict(question.metadata))


DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files of ../shared/data are absent")
@pytest.mark.parametrize("name", ["hotpotqa", "2wikimultihopqa", "nq"])
def test_real_files(name: str) -> None:
    found = questions.load("jsonl", "all", path=DATA / f"{name}.jsonl", corpus=DATA / f"{name}_corpus.jsonl")
    ids = {document.doc_id for document in found.documents}  # type: ignore[attr-defined]
    assert len(found) >= 300
    for question in found:
        assert question.metadata["supporting_ids"]
        assert set(question.metadata["supporting_ids"]) <= ids
    for document in found.documents:  # type: ignore[attr-defined]
        assert document.title
        assert not document.title.startswith('"') or not document.title.endswith('"')
