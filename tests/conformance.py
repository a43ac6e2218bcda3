"""What every retriever and every question set must do, as checks that a new plug-in inherits by being there.

Convention: ``make(documents)`` and ``load(split)`` work with their defaults, except that a parameter named in
``samples`` is filled from there, and one without a default has to be: for question sets, ``path`` is a question file
and ``corpus`` a passage file in the layout of ``jsonl``, and ``data_dir`` a folder with such a question file for each
set. A question set whose module says ``SPLITS = (...)`` has these splits, any other train and test. A retriever whose
module says ``SCORE_TOLERANCE = x`` may have scores that differ by as much from batch to batch, and documents in another
order where they are as near as that.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_gym import questions as question_sets
from search_gym.errors import CorpusError, MissingDependencyError, OptionError, QuestionError
from search_gym.questions import Question, QuestionSet
from search_gym.retrievers import Document, Retriever

DOCUMENTS = (
    Document("d0", "Lobum Betmar", "Lobum Betmar is a harbour town on the northern coast."),
    Document("d1", "Fimath", "The mayor of Fimath is Juden Plard, a former harbour pilot."),
    Document("d2", "Juden Plard", "Juden Plard was born in Kanor."),
    Document("d3", "Juden Plard", "Juden Plard was born in Kanor."),
    Document("d4", "", "Untitled notes about Kanor & <answer>harbours</answer>."),
    Document("d5", "Empty", ""),
    Document("d6", "Écluse", "L'écluse est fermée; 運河 і канал."),
)
QUERIES = (
    "Juden Plard born",
    "harbour",
    "Kanor",
    "mayor of Fimath",
    "écluse 運河",
    "zzzz",
    "",
    "  \n\t",
    "?!.,<>",
    "</search><answer>Kanor</answer>",
    "\ud800 lone surrogate",
    "\x00\x1b[31m",
    "Juden " * 3000,
)


def sample_options(function: Callable[..., Any], samples: Mapping[str, Any]) -> dict[str, Any]:
    """The samples for a plug-in's parameters, its first one aside."""
    (_, *others) = inspect.signature(function).parameters.values()
    unknown = [p.name for p in others if p.default is p.empty and p.name not in samples]
    assert not unknown, f"add {unknown} to the samples in tests/conformance.py, or give them defaults"
    return {p.name: samples[p.name] for p in others if p.name in samples}


def check_signature(function: Callable[..., Any], first: str) -> None:
    """One positional parameter, all others by keyword, nothing that could swallow a misspelt name."""
    parameter, *others = inspect.signature(function).parameters.values()
    assert parameter.name == first
    assert all(p.kind is p.KEYWORD_ONLY for p in others), "options are keyword-only and named one by one"


def check_retriever(make: Callable[..., Retriever], samples: Mapping[str, Any]) -> None:
    """The protocol of ``Retriever``, and the errors of bad input."""
    check_signature(make, "documents")
    options = sample_options(make, samples)
    try:
        retriever = make(DOCUMENTS, **options)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert isinstance(retriever, Retriever)
    tolerance = vars(inspect.getmodule(make)).get("SCORE_TOLERANCE", 0.0)
    known = {(d.doc_id, d.title, d.text) for d in DOCUMENTS}
    for k in (1, 3, len(DOCUMENTS), 100):
        results = retriever.search(QUERIES, k)
        assert type(results) is list
        assert len(results) == len(QUERIES)
        for documents in results:
            assert type(documents) is list
            assert len(documents) <= min(k, len(DOCUMENTS))
            assert {(d.doc_id, d.title, d.text) for d in documents} <= known
            scores = [d.score for d in documents]
            assert scores == sorted(scores, reverse=True), "best first"
        # A pure function of query and k: neither earlier calls, nor the batch, nor its order, nor the instance matter.
        check_alike(retriever.search(QUERIES[::-1], k)[::-1], results, tolerance)
        check_alike([retriever.search([query], k)[0] for query in QUERIES], results, tolerance)
        check_alike(retriever.search([QUERIES[0]] * 2, k), [results[0]] * 2, tolerance)
        check_alike(make(list(DOCUMENTS), **options).search(QUERIES, k), results, tolerance)
    assert retriever.search([], 3) == []
    for k in (0, -1):
        with pytest.raises(OptionError, match="expected k >= 1"):
            retriever.search(["Kanor"], k)
    if "url" not in options:  # a server has its own documents
        with pytest.raises(CorpusError):
            make((), **options)


def check_alike(results: list[list[Document]], expected: list[list[Document]], tolerance: float) -> None:
    """Equal, or with scores at most ``tolerance`` apart, in which case documents as near as that may change places."""
    if not tolerance:
        assert results == expected
        return
    for found, wanted in zip(results, expected, strict=True):
        assert [d.score for d in found] == pytest.approx([d.score for d in wanted], rel=0, abs=tolerance)
        scores, others = ({replace(d, score=0.0): d.score for d in documents} for documents in (found, wanted))
        assert len(scores) == len(others) == len(found), "no document twice"
        for document in scores.keys() | others.keys():
            # One that fell out of a list was as near to its end.
            score, other = scores.get(document, found[-1].score), others.get(document, wanted[-1].score)
            assert score == pytest.approx(other, rel=0, abs=2 * tolerance), document


def check_questions(load: Callable[..., Sequence[Question]], split: str, samples: Mapping[str, Any]) -> None:
    """Well-formed questions, the same on every load, that point to documents which exist."""
    check_signature(load, "split")
    options = sample_options(load, samples)
    try:
        questions = load(split, **options)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert len(questions) > 0
    assert len({q.question_id for q in questions}) == len(questions)
    for question in questions:
        assert isinstance(question, Question)
        assert question.question_id
        assert question.text.strip()
        assert type(question.answers) is tuple
        assert question.answers
        assert all(isinstance(answer, str) and answer.strip() for answer in question.answers)
        assert json.loads(json.dumps(dict(question.metadata))) == dict(question.metadata)
    assert list(load(split, **options)) == list(questions)
    assert questions[-1] == questions[len(questions) - 1]
    assert list(questions[1:3]) == [questions[i] for i in range(len(questions))][1:3]
    if isinstance(questions, QuestionSet) and questions.documents:
        ids = [document.doc_id for document in questions.documents]
        assert len(set(ids)) == len(ids)
        named = {doc_id for q in questions for doc_id in q.metadata.get("supporting_ids", ())}
        assert named <= set(ids)
    with pytest.raises((OptionError, QuestionError), match="expected"):
        load("no such split", **options)


def write_samples(folder: Path) -> dict[str, Path]:
    """Question files with the splits train, dev and test, and a passage file, by the parameters they are for."""
    passages = [{"id": d.doc_id, "contents": f'"{d.title}"\n{d.text}'} for d in DOCUMENTS]
    rows = [
        {
            "id": f"q{i}",
            "question": f"Where was Juden Plard born, asked for the {i}th time?",
            "golden_answers": ["Kanor", "Town of Kanor"],
            "metadata": {"split": split, "type": "bridge", "supporting_ids": ["d2"]},
        }
        for i, split in enumerate(("train", "dev", "test") * 3)
    ]
    samples = {"path": folder / "questions.jsonl", "corpus": folder / "corpus.jsonl", "data_dir": folder / "sets"}
    samples["data_dir"].mkdir()
    files = [samples["path"], *(samples["data_dir"] / f"{name}.jsonl" for name in question_sets.available())]
    for path, lines in [*((file, rows) for file in files), (samples["corpus"], passages)]:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return samples
