"""Dense retrieval against numpy's brute force, and indexes that cannot disagree with their queries."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_gym import retrievers
from search_gym.cli import main
from search_gym.corpus import Corpus, format_contents, write_corpus
from search_gym.errors import CorpusError, IndexFileError, OptionError, RetrievalError
from search_gym.retrievers import Document, Retriever, _faiss
from search_gym.retrievers._index import open_index
from search_gym.retrievers.dense import SCORE_TOLERANCE, build
from tests.conformance import check_alike
from tests.encoder_models import HashingEncoder, export, write_encoder

ROOT = Path(__file__).parents[1]
HASHING = "tests.encoder_models:hashing"
PLACES = ("harbour", "mayor", "town", "kanor", "plard", "coast", "pilot", "bridge")
DOCUMENTS = tuple(
    Document(f"d{i}", f"{a} {b}", f"The {a} of the {b}, number {i}.")
    for i, (a, b) in enumerate((a, b) for a in PLACES for b in PLACES)
)
QUERIES = ["harbour of kanor", "pilot", "", "who is the mayor of the town?", "coast coast"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(DOCUMENTS, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "query: ", "passage": "passage: "}
    return write_encoder(tmp_path_factory.mktemp("models") / "encoder", prompts=prompts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dense")


@pytest.fixture(scope="module")
def hashing() -> Retriever:
    return retrievers.load("dense", DOCUMENTS, encoder=HASHING)


def ids(results: list[list[Document]]) -> list[list[str]]:
    return [[document.doc_id for document in found] for found in results]


# Exact search


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """A full stable sort of the inner products."""
    return np.argsort(-(vectors @ query), kind="stable")[:k].tolist()


@settings(max_examples=60)
@given(
    size=st.integers(1, 300),
    dimension=st.integers(1, 8),
    num_queries=st.sampled_from([1, 5, 30]),
    largest=st.integers(0, 3),
    k=st.integers(1, 320),
    seed=st.integers(0, 999),
)
def test_flat_equals_brute_force_with_ties_in_order(
    size: int, dimension: int, num_queries: int, largest: int, k: int, seed: int
) -> None:
    """Small integers: float32 has no rounding, and many vectors are equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-largest, largest + 1, (size, dimension)).astype(np.float32)
    queries = rng.integers(-largest, largest + 1, (num_queries, dimension)).astype(np.float32)
    index = _faiss.create("Flat", dimension)
    _faiss.add(index, [vectors])
    for (rows, scores), query in zip(_faiss.search(index, queries, k, None), queries, strict=True):
        assert rows == brute_force(vectors, query, k)
        assert scores == (vectors @ query)[rows].tolist()


def test_an_index_finds_what_its_encoder_says(hashing: Retriever) -> None:
    encoder = HashingEncoder()
    vectors = encoder.encode_passages([format_contents(document) for document in DOCUMENTS])
    for query, found in zip(QUERIES, hashing.search(QUERIES, 9), strict=True):
        (vector,) = encoder.encode_queries([query])
        expected = [DOCUMENTS[i] for i in brute_force(vectors, vector, 9)]
        assert [d.doc_id for d in found] == [d.doc_id for d in expected]
        assert [(d.title, d.text) for d in found] == [(d.title, d.text) for d in expected]
        assert [d.score for d in found] == pytest.approx(sorted(vectors @ vector, reverse=True)[:9], abs=1e-6)


@given(st.lists(st.sampled_from([*QUERIES, "town", "\ud800"]), max_size=8), st.integers(1, 80))
def test_answers_do_not_depend_on_the_batch(hashing: Retriever, queries: list[str], k: int) -> None:
    together = hashing.search(queries, k)
    alone = [hashing.search([query], len(DOCUMENTS))[0] for query in queries]
    check_alike(together, [found[:k] for found in alone], SCORE_TOLERANCE)
    assert all(len(found) == min(k, len(DOCUMENTS)) for found in together)


def test_equal_queries_have_lists_of_their_own(hashing: Retriever) -> None:
    one, two = hashing.search(["a", "a"], 3)
    assert one == two
    one.clear()
    assert len(two) == 3


# Approximate search


@pytest.fixture(scope="module")
def clusters() -> tuple[np.ndarray, np.ndarray]:
    """5,000 vectors around 50 centres, and 100 queries near some of them, all of length 1."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, 32))
    vectors = centres[rng.integers(0, 50, 5000)] + 1.2 * rng.standard_normal((5000, 32))
    queries = vectors[rng.integers(0, 5000, 100)] + 0.2 * rng.standard_normal((100, 32))
    return tuple((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (vectors, queries))


def recall(factory: str, vectors: np.ndarray, queries: np.ndarray, *, nprobe: int = 8, ef_search: int = 64) -> float:
    index = _faiss.create(factory, vectors.shape[1])
    if not index.is_trained:
        _faiss.train(index, factory, vectors[:1500])
    _faiss.add(index, [vectors])
    _faiss.set_effort(index, factory, nprobe=nprobe, ef_search=ef_search)
    found = _faiss.search(index, queries, 10, 1)
    exact = [set(brute_force(vectors, query, 10)) for query in queries]
    return float(np.mean([len(best & set(rows)) / 10 for best, (rows, _) in zip(exact, found, strict=True)]))


@pytest.mark.parametrize(
    ("factory", "least"), [("HNSW32", 0.95), ("IVF32,Flat", 0.9), ("SQfp16", 0.99), ("IVF32,PQ16x4", 0.55)]
)
def test_approximate_indexes_find_most_of_what_is_near(clusters: Any, factory: str, least: float) -> None:
    assert recall(factory, *clusters) >= least


def test_more_effort_finds_more(clusters: Any) -> None:
    assert recall("IVF32,Flat", *clusters, nprobe=1) < recall("IVF32,Flat", *clusters, nprobe=4)
    assert recall("IVF32,Flat", *clusters, nprobe=32) == 1.0
    assert recall("HNSW4", *clusters, ef_search=1) < recall("HNSW4", *clusters, ef_search=256)


def test_an_index_over_a_transformation_takes_the_effort_too(clusters: Any) -> None:
    assert recall("PCA24,IVF32,Flat", *clusters, nprobe=1) < recall("PCA24,IVF32,Flat", *clusters, nprobe=32)


def test_lists_that_are_too_short_are_cut() -> None:
    index = _faiss.create("IVF8,Flat", 4)
    vectors = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    _faiss.train(index, "IVF8,Flat", vectors)
    _faiss.add(index, [vectors[:3]])
    _faiss.set_effort(index, "IVF8,Flat", nprobe=1, ef_search=1)
    assert sum(len(rows) for rows, _ in _faiss.search(index, vectors[:8], 3, None)) < 24


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 60))
def test_a_sample_is_read_from_its_shards(sizes: list[int], most: int) -> None:
    vectors = np.arange(sum(sizes) * 2, dtype=np.float32).reshape(-1, 2)
    parts = np.split(vectors, np.cumsum(sizes)[:-1])
    rows = _faiss.sample_rows(len(vectors), most)
    assert len(set(rows.tolist())) == len(rows) == min(most, len(vectors))
    np.testing.assert_array_equal(_faiss.gather(parts, rows), vectors[rows])


def test_the_size_of_the_training_sample_follows_the_lists() -> None:
    assert _faiss.training_size("PQ32") == 65_536
    assert _faiss.training_size("IVF16,PQ32") == 65_536
    assert _faiss.training_size("OPQ16,IVF4096,PQ64") == 64 * 4096


@pytest.mark.parametrize("factory", ["Flatt", "IVF,PQ", "PQ5", ""])
def test_a_description_that_faiss_does_not_know_is_refused(factory: str) -> None:
    with pytest.raises(OptionError, match="expected a faiss factory string"):
        retrievers.load("dense", DOCUMENTS, encoder=HASHING, faiss=factory)


def test_too_few_documents_to_train_on_are_refused() -> None:
    with pytest.raises(OptionError, match="expected enough documents to train"):
        retrievers.load("dense", DOCUMENTS[:3], encoder=HASHING, faiss="IVF8,Flat")


def test_the_number_of_threads_is_put_back() -> None:
    before = faiss.omp_get_max_threads()
    retrievers.load("dense", DOCUMENTS, encoder=HASHING, threads=before + 1).search(["a"], 1)
    assert faiss.omp_get_max_threads() == before


# Saved indexes


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "IVF2,PQ4x4", "SQ8"])
def test_a_saved_index_answers_as_one_in_memory(corpus: Corpus, tmp_path: Path, factory: str) -> None:
    build(corpus, tmp_path, encoder=HASHING, faiss=factory, shard_size=10)
    saved = retrievers.load(f"dense(index={tmp_path})")
    memory = retrievers.load("dense", DOCUMENTS, encoder=HASHING, faiss=factory)
    for k in (1, 5, 100):
        check_alike(saved.search(QUERIES, k), memory.search(QUERIES, k), SCORE_TOLERANCE)
    assert not (tmp_path / "vectors").exists()
    assert list(saved.documents) == list(DOCUMENTS)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux to see what is mapped")
@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat", "SQ8"])
def test_a_saved_index_is_mapped_into_memory(corpus: Corpus, tmp_path: Path, factory: str) -> None:
    build(corpus, tmp_path, encoder=HASHING, faiss=factory)
    retriever = retrievers.load("dense", index=tmp_path)
    assert str(tmp_path / "index.faiss") in Path("/proc/self/maps").read_text()
    assert retriever.search(["a"], 1)


@given(st.lists(st.integers(1, 5), max_size=4), st.integers(1, 9))
def test_a_flat_index_is_written_as_faiss_writes_it(folder: Path, sizes: list[int], dimension: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((size, dimension)).astype(np.float32) for size in sizes]
    index = faiss.IndexFlatIP(dimension)
    _faiss.add(index, parts)
    path = folder / "index.faiss"
    _faiss.write_flat(path, dimension, sum(sizes), parts)
    assert path.read_bytes() == faiss.serialize_index(index).tobytes()


def test_all_that_decides_a_vector_is_in_the_index(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path, encoder=str(model))
    saved = open_index(tmp_path, "dense")
    about = saved.options["encoder"]
    assert about["query_prefix"] == "query: "
    assert about["passage_prefix"] == "passage: "
    assert {"pooling": "mean", "normalize": True, "max_length": 64, "precision": "fp32"}.items() <= about.items()
    assert saved.options["faiss"] == "Flat"
    check_alike(
        retrievers.load("dense", index=tmp_path).search(QUERIES, 5),
        retrievers.load("dense", DOCUMENTS, encoder=str(model)).search(QUERIES, 5),
        SCORE_TOLERANCE,
    )


@pytest.mark.parametrize(
    "options",
    [{"query_prefix": ""}, {"pooling": "cls"}, {"normalize": False}, {"preset": "e5-base-v2"}, {"faiss": "HNSW32"}],
)
def test_an_open_index_takes_no_other_recipe(corpus: Corpus, tmp_path: Path, options: dict[str, Any]) -> None:
    build(corpus, tmp_path, encoder=HASHING)
    with pytest.raises(OptionError, match="expected no options"):
        retrievers.load("dense", index=tmp_path, **options)


def test_an_index_has_its_own_documents(corpus: Corpus, tmp_path: Path) -> None:
    build(corpus, tmp_path, encoder=HASHING)
    with pytest.raises(OptionError, match="expected no documents"):
        retrievers.load("dense", DOCUMENTS, index=tmp_path)
    with pytest.raises(CorpusError, match="expected documents"):
        retrievers.load("dense", encoder=HASHING)


def test_another_model_in_the_same_place_is_noticed(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    folder, index = tmp_path / "model", tmp_path / "index"
    shutil.copytree(model, folder)
    build(corpus, index, encoder=str(folder))
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(OptionError, match="expected a model's directory"):
        retrievers.load("dense", index=index)
    moved = retrievers.load("dense", index=index, encoder=str(tmp_path / "moved"))
    assert ids(moved.search(QUERIES, 3)) == ids(
        retrievers.load("dense", DOCUMENTS, encoder=str(model)).search(QUERIES, 3)
    )
    write_encoder(folder, seed=1)
    with pytest.raises(IndexFileError, match="makes other vectors"):
        retrievers.load("dense", index=index)


def test_other_files_beside_the_model_change_nothing(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    """What sentence-transformers' files said was kept when the index was built."""
    folder, index = tmp_path / "model", tmp_path / "index"
    shutil.copytree(model, folder)
    build(corpus, index, encoder=str(folder))
    before = retrievers.load("dense", index=index).search(QUERIES, 5)
    shutil.rmtree(folder / "1_Pooling")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "another: "}}))
    assert retrievers.load("dense", index=index).search(QUERIES, 5) == before


@pytest.mark.parametrize("other", ["tests.encoder_models:hashing_with_salt", "tests.encoder_models:impostor"])
def test_another_encoder_from_outside_is_noticed(corpus: Corpus, tmp_path: Path, other: str) -> None:
    build(corpus, tmp_path, encoder=HASHING)
    with pytest.raises(IndexFileError, match="makes other vectors"):
        retrievers.load("dense", index=tmp_path, encoder=other)


def test_an_index_of_torch_is_asked_by_torch(corpus: Corpus, tmp_path: Path) -> None:
    """The runtime is kept: int8 vectors are others than those of float32."""
    source = write_encoder(tmp_path / "source")
    target = export(source, tmp_path / "int8", is_int8=True)
    recipe = {"query_prefix": "", "passage_prefix": "", "pooling": "mean", "normalize": True, "max_length": 64}
    build(corpus, tmp_path / "index", encoder=str(target), **recipe)
    assert open_index(tmp_path / "index").options["encoder"]["runtime"] == "onnx"
    assert retrievers.load("dense", index=tmp_path / "index").search(QUERIES, 3)
    with pytest.raises(OptionError, match=r"expected model\.onnx"):
        retrievers.load("dense", index=tmp_path / "index", encoder=str(source))


def test_an_index_of_bf16_may_be_asked_in_fp32(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    build(corpus, tmp_path, encoder=str(model), precision="bf16")
    assert retrievers.load("dense", index=tmp_path).search(QUERIES, 3)


def _remove_probe(path: Path) -> None:
    about = json.loads((path / "index.json").read_text())
    del about["options"]["encoder"]["probe"]
    (path / "index.json").write_text(json.dumps(about))


def _remove_options(path: Path) -> None:
    about = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**about, "options": {}}))


def _cut(path: Path) -> None:
    data = (path / "index.faiss").read_bytes()
    (path / "index.faiss").write_bytes(data[: len(data) // 2])


def _replace(path: Path) -> None:
    faiss.write_index(faiss.IndexFlatIP(16), str(path / "index.faiss"))


@pytest.mark.parametrize(
    "damage", [_remove_probe, _remove_options, _cut, _replace, lambda path: (path / "index.faiss").unlink()]
)
def test_a_damaged_index_is_refused(corpus: Corpus, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    build(corpus, tmp_path, encoder=HASHING)
    damage(tmp_path)
    with pytest.raises(IndexFileError, match="expected"):
        retrievers.load("dense", index=tmp_path)


def test_an_index_is_built_and_asked_on_the_command_line(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "index")
    options = ("--option", f"encoder={HASHING}", "--option", "faiss=HNSW8")
    main(["index", "build", "dense", "--corpus", str(corpus.path), "--output", folder, *options])
    assert "HNSW8" in capsys.readouterr().out
    main(["index", "search", folder, "harbour of kanor", "--k", "1", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["documents"]
    ((expected,),) = retrievers.load("dense", DOCUMENTS, encoder=HASHING).search(["harbour of kanor"], 1)
    assert found["id"] == expected.doc_id


def test_numbers_that_are_not_finite_stop_a_search(corpus: Corpus) -> None:
    retriever = retrievers.load("dense", DOCUMENTS, encoder="tests.encoder_models:broken")
    with pytest.raises(RetrievalError, match="finite"):
        retriever.search(["nan"], 1)
    assert len(retriever.search(["a"], 1)[0]) == 1


@pytest.mark.parametrize("options", [{"nprobe": 0}, {"ef_search": 0}, {"precision": "fp8"}, {"batch_size": -1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        retrievers.load("dense", DOCUMENTS, encoder=HASHING, **options)


# A build that is killed

KILLED = """
import sys
from pathlib import Path
from search_gym.corpus import Corpus
from search_gym.retrievers import dense
dense.build(Corpus(sys.argv[1]), Path(sys.argv[2]), encoder=sys.argv[3], shard_size=40, keep_vectors=True)
"""


def vectors_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / "vectors").glob("*.npy"))}


def test_a_killed_build_goes_on_where_it_was(model: Path, tmp_path: Path) -> None:
    documents = [Document(f"{i}-{d.doc_id}", d.title, f"{d.text} {i} " * 4) for i in range(40) for d in DOCUMENTS]
    corpus = write_corpus(documents, tmp_path / "corpus")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    build(corpus, whole, encoder=str(model), shard_size=40, keep_vectors=True)
    command = [sys.executable, "-c", KILLED, str(corpus.path), str(killed), str(model)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(vectors_of(killed)) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = vectors_of(killed)
    assert 2 <= len(before) < 64
    assert vectors_of(whole).items() >= before.items()
    times = {name: (killed / "vectors" / name).stat().st_mtime_ns for name in before}
    with pytest.raises(IndexFileError, match="which goes on where it was stopped"):
        retrievers.load("dense", index=killed)

    build(corpus, killed, encoder=str(model), shard_size=40, keep_vectors=True)
    assert vectors_of(killed) == vectors_of(whole)
    assert {name: (killed / "vectors" / name).stat().st_mtime_ns for name in before} == times, "not made again"
    assert (killed / "index.faiss").read_bytes() == (whole / "index.faiss").read_bytes()
    one, two = (retrievers.load("dense", index=path).search(QUERIES, 5) for path in (whole, killed))
    assert one == two


@pytest.mark.parametrize(
    ("options", "different"),
    [({"shard_size": 30}, "shard_size"), ({"encoder": "tests.encoder_models:hashing_with_salt"}, "encoder")],
)
def test_a_build_goes_on_only_as_it_began(
    corpus: Corpus, tmp_path: Path, options: dict[str, Any], different: str
) -> None:
    begun = {"encoder": HASHING, "shard_size": 20}
    build(corpus, tmp_path, **begun, keep_vectors=True)
    (tmp_path / "index.json").unlink()
    with pytest.raises(OptionError, match=f"got another {different}"):
        build(corpus, tmp_path, **{**begun, **options})
    other = write_corpus(DOCUMENTS[1:], tmp_path / "other")
    with pytest.raises(OptionError, match="got another fingerprint"):
        build(other, tmp_path, **begun)
    build(corpus, tmp_path, **begun)
    assert retrievers.load("dense", index=tmp_path).search(["a"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("order", [("torch", "faiss"), ("faiss", "torch")])
def test_torch_and_faiss_live_together_in_either_order(corpus: Corpus, model: Path, order: tuple[str, str]) -> None:
    """Each brings its own OpenMP."""
    program = f"""
import warnings; warnings.simplefilter("error")
import {order[0]}, {order[1]}
from search_gym import retrievers
from search_gym.corpus import Corpus
retriever = retrievers.load("dense", Corpus({str(corpus.path)!r}), encoder={str(model)!r}, threads=2)
queries = ["harbour of kanor"] + [f"town {{i}}" for i in range(40)]
print(*(d.doc_id for found in retriever.search(queries, 3) for d in found))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    queries = ["harbour of kanor", *(f"town {i}" for i in range(40))]
    expected = retrievers.load("dense", DOCUMENTS, encoder=str(model)).search(queries, 3)
    assert done.stdout.split() == [d.doc_id for found in expected for d in found]
