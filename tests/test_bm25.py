"""BM25 against the formula written out, its fast search against its slow one, and its files against bm25s."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_gym import plugins, retrievers
from search_gym.corpus import write_corpus
from search_gym.errors import CorpusError, IndexFileError, MissingDependencyError, OptionError
from search_gym.retrievers import Document, _bm25_files, _bm25_search, bm25
from search_gym.retrievers._bm25_search import Postings, Queries, search_numba, search_numpy
from search_gym.retrievers._ranking import words
from tests import conformance

TEXTS = st.lists(st.sampled_from("abcdef"), max_size=8).map(" ".join)
CORPORA = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12).map(
    lambda pairs: [Document(f"d{i}", title, text) for i, (title, text) in enumerate(pairs)]
)
WORDY_CORPORA = CORPORA.filter(lambda documents: any(d.title or d.text for d in documents))


def bm25_reference(documents: list[Document], query: str, k1: float, b: float) -> list[float]:
    """Lucene's BM25 written out: idf = ln(1 + (N - n + 1/2) / (n + 1/2)), tf / (tf + k1 (1 - b + b |d| / mean |d|))."""
    bags = [Counter(f"{d.title} {d.text}".split()) for d in documents]
    mean_length = sum(sum(bag.values()) for bag in bags) / len(bags)
    scores = []
    for bag in bags:
        score = 0.0
        for word in query.split():
            if bag[word]:
                n = sum(word in other for other in bags)
                idf = math.log(1 + (len(bags) - n + 0.5) / (n + 0.5))
                score += idf * bag[word] / (bag[word] + k1 * (1 - b + b * sum(bag.values()) / mean_length))
        scores.append(score)
    return scores


@given(WORDY_CORPORA, TEXTS, st.integers(1, 15), st.floats(0, 3), st.floats(0, 1))
def test_it_equals_the_formula(documents: list[Document], query: str, k: int, k1: float, b: float) -> None:
    expected = bm25_reference(documents, query, k1, b)
    (found,) = retrievers.load("bm25", documents, k1=k1, b=b).search([query], k)
    assert len({d.doc_id for d in found}) == len(found) == min(k, sum(score > 0 for score in expected))
    assert [d.score for d in found] == pytest.approx([expected[int(d.doc_id[1:])] for d in found], rel=1e-5)
    assert [d.score for d in found] == pytest.approx(sorted(expected, reverse=True)[: len(found)], rel=1e-5)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@given(WORDY_CORPORA, TEXTS, st.integers(1, 12), st.integers(2, 4))
def test_ties_keep_the_order_of_the_corpus(
    backend: str, documents: list[Document], query: str, k: int, copies: int
) -> None:
    repeated = [Document(str(i), d.title, d.text) for i, d in enumerate(documents * copies)]
    retriever = retrievers.load("bm25", repeated, backend=backend)
    (found,) = retriever.search([query], len(repeated))
    ranks = [(-d.score, int(d.doc_id)) for d in found]
    assert ranks == sorted(ranks)
    assert retriever.search([query], k)[0] == found[:k]


def test_it_reads_title_and_text_without_case() -> None:
    documents = [
        Document("0", "Port Sol", "A harbour."),
        Document("1", "Mara", "Was born in PORT sol."),
        Document("2", "", "-"),
    ]
    (found,) = retrievers.load("bm25", documents).search(["port-SOL"], 3)
    assert {d.doc_id for d in found} == {"0", "1"}


# The two ways to search


def some_postings(rng: np.random.Generator, num_documents: int, num_terms: int) -> Postings:
    """Terms from rare to everywhere, with so few different scores that most documents tie."""
    columns = [np.flatnonzero(rng.random(num_documents) < rng.random() ** 4) for _ in range(num_terms)]
    indices = np.concatenate(columns).astype(np.int32)
    data = rng.choice(np.array([0.1, 0.25, 0.7], dtype=np.float32), size=len(indices))
    return Postings(data, indices, np.cumsum([0, *map(len, columns)]), num_documents)


def some_queries(rng: np.random.Generator, number: int, num_terms: int) -> Queries:
    queries = [rng.permutation(num_terms)[: rng.integers(num_terms + 1)].tolist() for _ in range(number)]
    terms = [term for query in queries for term in query]
    return Queries(terms, rng.integers(1, 4, len(terms)).tolist(), np.cumsum([0, *map(len, queries)]).tolist())


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 8), st.integers(0, 6), st.integers(1, 500))
def test_the_fast_search_equals_the_slow_one(seed: int, size: int, num_terms: int, number: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    postings, queries = some_postings(rng, size, num_terms), some_queries(rng, number, num_terms)
    expected = search_numpy(postings, queries, k)
    assert search_numba(postings, queries, k) == expected
    assert search_numba(postings, queries, k, threads=3) == expected


@pytest.mark.parametrize("k", [1, 10, 70_000])
def test_the_fast_search_equals_the_slow_one_over_many_blocks(k: int) -> None:
    rng = np.random.default_rng(0)
    postings, queries = some_postings(rng, 60_000, 6), some_queries(rng, 12, 6)
    assert postings.num_documents > 3 * _bm25_search._DOCUMENTS_A_BLOCK
    assert search_numba(postings, queries, k) == search_numpy(postings, queries, k)


def test_threads_of_a_server_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(1)
    postings = some_postings(rng, 20_000, 6)
    batches = [some_queries(rng, 8, 6) for _ in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda queries: search_numba(postings, queries, 5, threads=2), batches))
    assert found == [search_numpy(postings, queries, 5) for queries in batches]


def test_auto_is_numba_from_a_size_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_numba(retriever: bm25.BM25Retriever) -> bool:
        return retriever._search is not search_numpy

    assert not is_numba(bm25.make(conformance.DOCUMENTS))
    monkeypatch.setattr(bm25, "NUMBA_FROM", len(conformance.DOCUMENTS))
    assert is_numba(bm25.make(conformance.DOCUMENTS))
    monkeypatch.setattr(bm25, "find_spec", lambda name: None)
    assert not is_numba(bm25.make(conformance.DOCUMENTS))


# Options and errors


@pytest.mark.parametrize("options", [{"k1": -0.1}, {"k1": float("nan")}, {"b": 1.1}, {"b": -0.1}])
def test_parameters_out_of_range(options: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="expected k1"):
        retrievers.load("bm25", [Document("0", "a", "b")], **options)
    with pytest.raises(OptionError, match="expected k1"):
        bm25.build(write_corpus([Document("0", "a", "b")], tmp_path / "corpus"), tmp_path, **options)


@pytest.mark.parametrize("options", [{"backend": "jax"}, {"threads": 0}])
def test_no_such_backend_or_thread(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        retrievers.load("bm25", conformance.DOCUMENTS, **options)


def test_it_needs_a_word(tmp_path: Path) -> None:
    documents = [Document("0", "", " ?! ")]
    with pytest.raises(CorpusError, match="at least one word"):
        retrievers.load("bm25", documents)
    with pytest.raises(CorpusError, match="at least one word"):
        bm25.build(write_corpus(documents, tmp_path / "corpus"), tmp_path)


def test_jax_is_left_alone(tmp_path: Path) -> None:
    """The library would try it out, and it would take the memory of the GPU that a policy is to be trained on."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax/__init__.py").write_text("used = []")
    (tmp_path / "jax/lax.py").write_text("def top_k(*args): import jax; jax.used.append(1)")
    check = (
        "import sys; from search_gym import retrievers; from search_gym.retrievers import Document;"
        "found = retrievers.load('bm25', [Document('1', 'a', 'b')]).search(['b'], 1);"
        "assert found[0][0].doc_id == '1' and 'jax' not in sys.modules;"
        "import jax; assert not jax.used"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", check], env=environment, check=True, cwd=Path(__file__).parents[1])


def test_without_the_library_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(plugins.importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="pip install"):
        bm25.make([Document("0", "a", "b")])


# Saved indexes


def build(documents: Sequence[Document], path: Path, **options: float) -> Path:
    bm25.build(write_corpus(documents, path / "corpus"), path, **options)
    return path


def test_a_saved_index_keeps_the_protocol(tmp_path: Path) -> None:
    """Documents come from the index; ``make((), ...)`` without it is what has none."""
    path = build(conformance.DOCUMENTS, tmp_path)

    def make(documents: Sequence[Document], *, k1: float = 1.2) -> bm25.BM25Retriever:
        return bm25.make((), index=path, k1=k1) if len(documents) else bm25.make(())

    conformance.check_retriever(make, {})


@settings(max_examples=25)
@given(WORDY_CORPORA, st.lists(TEXTS, max_size=4), st.integers(1, 15), st.floats(0, 3), st.floats(0, 1))
def test_a_saved_index_finds_what_one_in_memory_finds(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Document],
    queries: list[str],
    k: int,
    k1: float,
    b: float,
) -> None:
    path = build(documents, tmp_path_factory.mktemp("index"), k1=k1, b=b)
    expected = retrievers.load("bm25", documents, k1=k1, b=b).search(queries, k)
    for backend in ("numpy", "numba"):
        assert bm25.make((), index=path, backend=backend).search(queries, k) == expected


WORDS = st.text(alphabet="ab0_éß運", min_size=1, max_size=3)


@settings(max_examples=25)
@given(st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 5))
def test_the_files_are_those_of_bm25s(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], documents_a_run: int, postings_a_merge: int
) -> None:
    """Built in many runs and parts, they hold what bm25s computes of all tokens at once, and it can open them."""
    if not any(texts):
        return
    path = tmp_path_factory.mktemp("index")
    documents = [Document(str(i), "", " ".join(text)) for i, text in enumerate(texts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_bm25_files, "_DOCUMENTS_A_RUN", documents_a_run)
        patch.setattr(_bm25_files, "_POSTINGS_A_MERGE", postings_a_merge)
        build(documents, path)
    tokens = [words(d.text) for d in documents]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(word for line in tokens for word in line))}
    expected = bm25s.BM25(k1=1.2, b=0.75)
    ids = [[vocabulary[word] for word in line] for line in tokens]
    expected.index((ids, vocabulary), create_empty_token=False, show_progress=False)
    opened = bm25s.BM25.load(path, mmap=True, show_progress=False)
    assert opened.vocab_dict == vocabulary
    for name in ("indices", "indptr"):
        assert np.array_equal(opened.scores[name], expected.scores[name])
        assert opened.scores[name].dtype == expected.scores[name].dtype
    np.testing.assert_allclose(opened.scores["data"], expected.scores["data"], rtol=3e-7)
    _, terms = _bm25_files.open_postings(path, len(documents))
    assert [terms.term(word) for word in vocabulary] == list(vocabulary.values())
    assert terms.term("absent") is terms.term("") is None
    assert not (path / f"runs-{json.loads((path / 'index.json').read_text())['fingerprint']}").exists()


def test_bm25s_ranks_its_files_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.zipf(1.3, 40) if i < 500) for _ in range(300)]
    path = build([Document(str(i), "", text) for i, text in enumerate(texts)], tmp_path)
    queries = [f"w{a} w{b} w{c}" for a, b, c in rng.integers(1, 60, (50, 3)) if len({a, b, c}) == 3]
    opened = bm25s.BM25.load(path, mmap=True, show_progress=False)
    theirs = opened.retrieve([query.split() for query in queries], k=5, show_progress=False).scores
    ours = [[d.score for d in found] for found in bm25.make((), index=path).search(queries, 5)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_an_index_and_documents_or_other_parameters_are_too_much(tmp_path: Path) -> None:
    path = build(conformance.DOCUMENTS, tmp_path, k1=0.9)
    assert bm25.make((), index=path, k1=0.9).search(["Kanor"], 1)
    with pytest.raises(OptionError, match="documents or an index"):
        bm25.make(conformance.DOCUMENTS, index=path)
    with pytest.raises(OptionError, match=r"k1 of the index, 0\.9, got 1\.2"):
        bm25.make((), index=path, k1=1.2)


FILES = ["data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy", "words.bin", "words.starts.npy"]
FILES += ["words.slots.npy"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "of another index"])
def test_damaged_files_are_noticed(name: str, damage: str, tmp_path: Path) -> None:
    path = build(conformance.DOCUMENTS, tmp_path / "one")
    file = path / name
    if damage == "missing":
        file.unlink()
    elif damage == "of another index":
        shutil.copy(build(conformance.DOCUMENTS[:2], tmp_path / "two") / name, file)
    else:
        file.write_bytes(file.read_bytes()[: 0 if damage == "empty" else -3])
    with pytest.raises(IndexFileError, match="build it anew"):
        bm25.make((), index=path)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from search_gym.corpus import Corpus
from search_gym.retrievers import _bm25_files, bm25

_bm25_files._DOCUMENTS_A_RUN, _bm25_files._POSTINGS_A_MERGE = 3, 16
steps = int(sys.argv[2])

def audit(event, arguments):
    global steps
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and not str(arguments[0]).endswith(".pyc"):
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)

corpus = Corpus(Path(sys.argv[1]) / "corpus")
sys.addaudithook(audit)
# Children made by forking, because starting each process anew takes too long.
for step in range(1, steps):
    if not (child := os.fork()):
        steps = step
        bm25.build(corpus, Path(sys.argv[1]) / "index")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    complete = (Path(sys.argv[1]) / "index/index.json").exists()
    found = bm25.make((), index=Path(sys.argv[1]) / "index").search(["Kanor"], 5)[0] if complete else []
    print(status, *(document.doc_id for document in found), flush=True)
    if os.WIFEXITED(status):
        break
"""


def test_a_build_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Killed at its first step on the disk, then the next build at its second, and so on, until one gets through."""
    corpus = write_corpus(conformance.DOCUMENTS, tmp_path / "corpus")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *kills, last = done.stdout.splitlines()
    expected = retrievers.load("bm25", conformance.DOCUMENTS).search(["Kanor", *conformance.QUERIES], 5)
    complete = " ".join(["", *(document.doc_id for document in expected[0])])
    assert last == f"0{complete}"
    assert len(kills) > 50
    # After the last file is written, only runs are removed.
    assert set(kills) == {f"{signal.SIGKILL:d}", f"{signal.SIGKILL:d}{complete}"}
    bm25.build(corpus, tmp_path / "direct")
    for name in FILES:
        assert (tmp_path / "index" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    assert not list((tmp_path / "index").glob("runs-*"))
    assert bm25.make((), index=tmp_path / "index").search(["Kanor", *conformance.QUERIES], 5) == expected
