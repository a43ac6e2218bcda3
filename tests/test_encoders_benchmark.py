"""The benchmark of real encoders: what it asks, what it keeps, and that docs/dense.md shows what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import retriever_encoders
from benchmarks.retriever_encoders import EncodersConfig, load_task, main, table, with_table
from search_gym import Document, Retriever, retrievers
from search_gym.errors import OptionError
from tests.encoder_models import write_cross_encoder, write_encoder

ROOT = Path(__file__).parents[1]
PASSAGES = ["Walden is a book by Thoreau.", "Concord is a town.", "Rhubarb is a plant.", "Thoreau was born in Concord."]
ASKED = [("Who wrote Walden?", [0]), ("Where was Thoreau born?", [3]), ("What is rhubarb?", [2, 0])]


@pytest.fixture
def config(tmp_path: Path) -> EncodersConfig:
    rows = [{"id": f"p{i}", "contents": f'"T{i}"\n{text}'} for i, text in enumerate(PASSAGES)]
    asked = [
        {
            "id": f"q{i}",
            "question": text,
            "golden_answers": ["x"],
            "metadata": {"supporting_ids": [f"p{j}" for j in gold]},
        }
        for i, (text, gold) in enumerate(ASKED)
    ]
    for name, lines in (("hotpotqa_corpus", rows), ("hotpotqa", asked)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = tmp_path / "dense.md"
    page.write_text(f"before\n{retriever_encoders.BEGIN}\nold\n{retriever_encoders.END}\nafter\n")
    return EncodersConfig(data=tmp_path, passages=4, top=2, output=tmp_path / "out/encoders.json", page=page)


def test_only_questions_whose_passages_are_there_are_asked(config: EncodersConfig) -> None:
    assert [q.question_id for q in load_task(config)[0]] == ["q0", "q1", "q2"]
    asked, documents = load_task(replace(config, passages=3))
    assert [q.question_id for q in asked] == ["q0", "q2"]
    assert [d.doc_id for d in documents] == ["p0", "p1", "p2"]
    (config.data / "hotpotqa_corpus.jsonl").write_text('{"id": "p9", "contents": "x"}\n')
    with pytest.raises(OptionError, match="expected questions about 1 passages, got none; do: raise --passages"):
        load_task(config)


def test_models_that_are_there_are_measured_and_rows_are_kept(
    config: EncodersConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {
        retriever_encoders.ENCODERS["e5-small-v2"]: write_encoder(tmp_path / "encoder"),
        retriever_encoders.CROSS_ENCODER: write_cross_encoder(tmp_path / "cross-encoder"),
    }
    monkeypatch.setattr(retriever_encoders, "find", lambda *place: folders.get(place))
    main(config)
    first = json.loads(config.output.read_text())
    labels = ["bm25", "dense(e5-small-v2, int8)", "rerank(bm25, ms-marco-MiniLM-L-12-v2, int8, top=2)"]
    assert [row["retriever"] for row in first["rows"]] == labels
    assert (first["questions"], first["passages"]) == (3, 4)
    # BM25's first is gold for each question, which is half of what the third asks for; "is" finds the other half.
    recall = first["rows"][0]["recall"]
    assert recall["1"]["mean"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert recall["10"]["mean"] == 1
    assert (
        config.page.read_text()
        == f"before\n{retriever_encoders.BEGIN}\n{table(first)}\n{retriever_encoders.END}\nafter\n"
    )

    # In another environment with another model: that is measured, the rest is kept, until there are other passages.
    folders[retriever_encoders.ENCODERS["all-MiniLM-L6-v2"]] = folders.pop(retriever_encoders.ENCODERS["e5-small-v2"])
    main(config)
    second = json.loads(config.output.read_text())
    assert [row for row in second["rows"] if row["retriever"] in labels] == first["rows"]
    assert len(second["rows"]) == 4
    assert "| `dense(all-MiniLM-L6-v2)` |" in table(second).splitlines()[3]
    main(replace(config, passages=3))
    assert [row["retriever"] for row in json.loads(config.output.read_text())["rows"]] == [
        "bm25",
        "dense(all-MiniLM-L6-v2)",
        labels[2],
    ]


def test_loading_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(retriever_encoders.time, "process_time", lambda: now[0])

    class Slow:
        """Takes 7 s to load, 1 s a passage and 0.5 s a question."""

        def __init__(self, documents: Sequence[Document]) -> None:
            now[0] += 7 + len(documents)
            self.inner = retrievers.load("bm25", documents)

        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            now[0] += 0.5 * len(queries)
            return self.inner.search(queries, k)

    def build(documents: list[Document]) -> Retriever:
        return Slow(documents)

    documents = [Document(f"p{i}", "", text) for i, text in enumerate(PASSAGES)]
    question: Any = retriever_encoders.Question("q", "Who wrote Walden?", ("x",), {"supporting_ids": ["p0"]})
    row = retriever_encoders.measure("slow", build, [question], documents)
    assert row["ms_per_passage"] == 1000
    assert row["ms_per_question"] == 500
    assert row["recall"]["1"]["mean"] == 1


def test_a_page_without_the_marker_is_refused() -> None:
    with pytest.raises(OptionError, match="expected the marker"):
        with_table("nothing", {"rows": [], "questions": 0, "passages": 0})


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs/dense.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks/results/retriever_encoders.json").read_text(encoding="utf-8"))
    assert with_table(page, results) == page
