"""The retrieval benchmark: what it generates and measures with, and that docs/scale.md shows what was measured."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import corpora, scale_page
from benchmarks.hashing_encoder import DIMENSION, HashingEncoder
from benchmarks.retriever_cells import Cell, take_turns
from benchmarks.retrievers import ScaleConfig, cells, factory, main
from search_gym.errors import OptionError
from search_gym.retrievers._encoders import Encoder
from search_gym.retrievers._ranking import words

RESULTS = scale_page.ROOT / "benchmarks/results/retrievers.json"


def test_a_small_corpus_is_the_beginning_of_a_large_one() -> None:
    large = list(corpora.documents(2_500))
    assert list(corpora.documents(1_200)) == large[:1_200]
    assert [d.doc_id for d in large] == [f"d{i}" for i in range(2_500)]
    assert next(corpora.documents(1, seed=1)) != large[0]


def test_passages_have_a_hundred_words_that_follow_zipf() -> None:
    texts = [words(d.text) for d in corpora.documents(3_000)]
    assert np.mean([len(text) for text in texts]) == pytest.approx(corpora.MEAN_LENGTH, abs=1)
    counts = Counter(word for text in texts for word in text)
    ranks = np.arange(150)  # those of topics and titles are rarer
    observed = [counts[corpora._spellings()[rank]] for rank in ranks]
    slope = np.polyfit(np.log(ranks + 1 + corpora.SHIFT), np.log(observed), 1)[0]
    assert slope == pytest.approx(-corpora.EXPONENT, abs=0.03)


def test_a_question_is_made_of_its_document() -> None:
    by_id = {d.doc_id: d for d in corpora.documents(2_500)}
    asked = corpora.questions(20, 2_500)
    assert asked == corpora.questions(20, 2_500)
    for text, doc_id in asked:
        document = by_id[doc_id]
        assert set(words(text)) <= set(words(f"{document.title} {document.text}"))
        assert text.split()[-4:] != document.title.lower().split()


def test_the_hashing_encoder_is_an_encoder_of_single_texts() -> None:
    encoder = HashingEncoder()
    assert isinstance(encoder, Encoder)
    texts = ["", "  ", "Walden", "walden pond", *(d.text for d in corpora.documents(600))]
    vectors = encoder.encode_passages(texts)
    assert vectors.shape == (len(texts), DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for i in (0, 2, 3, 300, 603):
        np.testing.assert_allclose(encoder.encode_queries([texts[i]])[0], vectors[i], atol=1e-6)
    assert vectors[2] @ vectors[3] > 0.5 > abs(vectors[2] @ vectors[4])
    assert encoder.encode_queries([]).shape == (0, DIMENSION)


@pytest.mark.parametrize(("size", "expected"), [(10_000, 64), (100_000, 256), (1_000_000, 512), (21_015_324, 4096)])
def test_the_number_of_lists_is_the_power_of_two_below_the_root(size: int, expected: int) -> None:
    assert expected**2 <= size < (2 * expected) ** 2
    assert factory("IVF,PQ32", size) == f"IVF{expected},PQ32"
    assert factory("HNSW32", size) == "HNSW32"


def test_cells_come_in_the_order_in_which_they_can_be_measured(tmp_path: Path) -> None:
    for name in ("nq", "musique"):
        (tmp_path / f"{name}_corpus.jsonl").touch()
    found = list(cells(ScaleConfig(sizes=(10, 20), data=tmp_path, model="folder/name")))
    assert len({cell.key for cell in found}) == len(found) == 2 * (1 + 4 * 3) + 1 + 3 * 4
    done: set[str] = set()
    for cell in found:
        before = {"build": "corpus", "serve": "build", "compare": "build"}.get(cell.measure)
        wanted = replace(cell, measure=before, kind="" if before == "corpus" else cell.kind) if before else None
        assert wanted is None or wanted.key in done
        done.add(cell.key)
    with pytest.raises(OptionError, match="check --data"):
        list(cells(ScaleConfig(data=tmp_path / "absent")))


def test_every_contestant_takes_each_turn_with_the_same_questions() -> None:
    asked: dict[str, list[tuple[str, ...]]] = {"ours": [], "direct": []}
    order: list[str] = []

    def contestant(name: str) -> Any:
        def search(queries: list[str], k: int) -> list[list[str]]:
            asked[name].append(tuple(queries))
            order.append(name)
            return []

        return search

    times = take_turns({name: contestant(name) for name in asked}, [f"q{i}" for i in range(512)])
    assert asked["ours"] == asked["direct"]
    assert {batch: len(rounds["ours"]) for batch, rounds in times.items()} == {1: 256, 64: 24, 512: 9}
    assert len(set(asked["ours"])) > 256
    firsts = order[::2]
    assert firsts.count("ours") == pytest.approx(len(firsts) / 2, abs=3)


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(scale_page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    scale_page.write_page(RESULTS, page)
    assert page.read_text(encoding="utf-8") == scale_page.PAGE.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="marker"):
        scale_page.with_table("no markers", "speed", "")


def test_every_figure_has_its_command() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert results["machine"]["cpus"]
    for key, cell in results["cells"].items():
        assert cell["command"].startswith("python -m benchmarks.retrievers")
        assert key == " / ".join(part for part in (cell["corpus"], cell["kind"], cell["measure"]) if part)


def test_exact_indexes_found_all_of_exact_search() -> None:
    for cell in json.loads(RESULTS.read_text(encoding="utf-8"))["cells"].values():
        if cell["measure"] == "serve" and cell["kind"] in ("bm25", "Flat"):
            assert set(cell["recall"].values()) == {1.0}


@pytest.mark.slow
def test_it_measures_every_cell_and_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_page, "PAGE", tmp_path / "scale.md")
    monkeypatch.setattr("benchmarks.retrievers.write_page", lambda results: None)
    config = ScaleConfig(sizes=(300,), kinds=("bm25", "Flat"), work_dir=tmp_path, output=tmp_path / "r.json")
    main(config, "the first command")
    first = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]
    assert set(first) == {Cell.key.fget(cell) for cell in cells(config)}  # type: ignore[attr-defined]
    assert first["300 / bm25 / serve"]["recall"] == {"1": 1.0, "3": 1.0, "10": 1.0}
    assert first["300 / bm25 / build"]["size_mb"] > 0
    main(replace(config, kinds=("bm25", "Flat", "HNSW32")), "the second command")
    second = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["cells"]
    assert {key: second[key] for key in first} == first
    assert second["300 / HNSW32 / compare"]["command"] == "the second command"
