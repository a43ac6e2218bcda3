"""BM25 indexes on disk: built in bounded memory, opened memory-mapped. The files are those of bm25s, and a vocabulary.

Documents are read in runs. A run's words are counted and sorted, and its folder stays until the index is complete, so
that a build that was stopped goes on after the last run. Then the runs are merged, some of the words at a time.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
import numpy.typing as npt

from search_gym._progress import progress
from search_gym.corpus import Corpus
from search_gym.errors import CorpusError, IndexFileError
from search_gym.retrievers import Document
from search_gym.retrievers._bm25_search import Postings
from search_gym.retrievers._ranking import words

_DOCUMENTS_A_RUN = 100_000
_POSTINGS_A_MERGE = 8_000_000
_WORDS_KEPT = 2**14
_ARRAYS = {"data": np.float32, "indices": np.int32, "indptr": np.int64}


class Vocabulary:
    """The words of an index in memory-mapped files: their bytes by term, and a hash table with linear probing."""

    def __init__(self, path: Path) -> None:
        with (path / "words.bin").open("rb") as file:
            self._bytes = mmap(file.fileno(), 0, access=ACCESS_READ)
        # Memory views, because numbers taken out of them are Python's.
        self._starts: memoryview[int] = _open(path / "words.starts.npy").data
        self._slots: memoryview[int] = _open(path / "words.slots.npy").data
        self.term = lru_cache(_WORDS_KEPT)(self._find)
        """The number of a word, None if no document holds it."""

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def is_whole(self) -> bool:
        """Whether the three files are as long as they say of each other."""
        return len(self._bytes) == self._starts[-1] and len(self._slots) == _table_size(len(self))

    def _find(self, word: str) -> int | None:
        key = word.encode()
        slot = crc32(key) & (len(self._slots) - 1)
        while (term := self._slots[slot]) >= 0:
            if self._bytes[self._starts[term] : self._starts[term + 1]] == key:
                return term
            slot = (slot + 1) & (len(self._slots) - 1)
        return None


def _table_size(num_keys: int) -> int:
    """A power of two, more than twice ``num_keys``."""
    return 1 << (2 * num_keys).bit_length()


def _hash_table(keys: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """The places of ``keys``, each in the first free slot from its hash on; -1 in the other slots."""
    mask = _table_size(len(keys)) - 1
    slots = array("i", [-1]) * (mask + 1)
    for place, key in enumerate(keys):
        slot = crc32(key) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = place
    return np.frombuffer(slots, dtype=np.int32)


def open_postings(path: Path, num_documents: int) -> tuple[Postings, Vocabulary]:
    """The index in the folder ``path``, memory-mapped.

    Raises:
        IndexFileError: a file is missing or damaged.
    """
    try:
        arrays = {name: _open(_file(path, name)) for name in _ARRAYS}
        vocabulary = Vocabulary(path)
    except (OSError, ValueError, EOFError) as error:
        raise IndexFileError(f"{path}: expected the files of a BM25 index, got {error}; do: build it anew") from error
    sizes = {len(arrays["data"]), len(arrays["indices"]), int(arrays["indptr"][-1])}
    if len(sizes) > 1 or len(arrays["indptr"]) != len(vocabulary) + 1 or not vocabulary.is_whole:
        raise IndexFileError(f"{path}: expected files of one BM25 index, got other sizes; do: build it anew")
    return Postings(**arrays, num_documents=num_documents), vocabulary


def write_postings(corpus: Corpus, path: Path, k1: float, b: float) -> None:
    """Write the files of an index of ``corpus`` into the folder ``path``; `remove_runs` is for when all is complete.

    Raises:
        CorpusError: no document holds a word.
    """
    folder = _runs_folder(path, corpus)
    _remove_runs_but(path, folder)
    vocabulary: dict[str, int] = {}
    runs = list(_read_runs(corpus, folder, vocabulary))
    if not vocabulary:
        raise CorpusError("expected documents with at least one word, got none; do: check the corpus")
    _merge(runs, len(vocabulary), path, k1, b)
    _write_vocabulary(vocabulary, path)
    params = {"k1": k1, "b": b, "delta": 0.5, "method": "lucene", "idf_method": "lucene", "dtype": "float32"}
    params |= {"int_dtype": "int32", "num_docs": len(corpus), "backend": "numpy"}
    (path / "params.index.json").write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")


def remove_runs(path: Path) -> None:
    """Remove what only a build that goes on needs."""
    _remove_runs_but(path, None)


def _remove_runs_but(path: Path, kept: Path | None) -> None:
    for folder in path.glob("runs-*.old"):
        shutil.rmtree(folder)
    for folder in path.glob("runs-*"):
        if folder != kept:
            # Renamed first: a folder of which only some was removed must not look like one to go on with.
            shutil.rmtree(folder.rename(folder.with_suffix(".old")))


def _runs_folder(path: Path, corpus: Corpus) -> Path:
    return path / f"runs-{corpus.fingerprint}"


def _file(path: Path, name: str) -> Path:
    return path / f"{name}.csc.index.npy"


def _open(path: Path) -> npt.NDArray[Any]:
    return np.load(path, mmap_mode="r").view(np.ndarray)


class _Run:
    """Some documents in a row: their lengths, and who holds what how often, sorted by term and document."""

    def __init__(self, path: Path) -> None:
        self.lengths, self._terms, self._ends, self._documents, self._counts = (
            _open(path / f"{name}.npy") for name in ("lengths", "terms", "ends", "documents", "counts")
        )

    def part(self, first: int, last: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], slice]:
        """The terms in [first, last) that occur, how many documents hold each, and the rows that name them."""
        some = slice(*np.searchsorted(self._terms, (first, last)).tolist())
        start = int(self._ends[some.start - 1]) if some.start else 0
        sizes = np.diff(self._ends[some], prepend=start)
        return self._terms[some], sizes, slice(start, start + int(sizes.sum()))

    def rows(self, rows: slice) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.unsignedinteger]]:
        """Documents and counts."""
        return self._documents[rows], self._counts[rows]


def _read_runs(corpus: Corpus, folder: Path, vocabulary: dict[str, int]) -> Iterator[_Run]:
    """The runs, those that are on disk and those that are made now; ``vocabulary`` grows in the order of the texts."""
    for start in progress(range(0, len(corpus), _DOCUMENTS_A_RUN), "counting words", unit="run"):
        path = folder / f"{start:012}"
        if path.is_dir():
            new = (path / "words.txt").read_text(encoding="utf-8").split("\n")[:-1]
            vocabulary.update(zip(new, range(len(vocabulary), len(vocabulary) + len(new)), strict=True))
        else:
            _write_run(corpus.iterate(start, start + _DOCUMENTS_A_RUN), path, start, vocabulary)
        yield _Run(path)


def _write_run(documents: Iterator[Document], path: Path, start: int, vocabulary: dict[str, int]) -> None:
    known = len(vocabulary)
    found, lengths = array("q"), array("i")
    for i, document in enumerate(documents):
        tokens = words(f"{document.title} {document.text}")
        lengths.append(len(tokens))
        # One integer for term and document: once sorted, they are in the order of the index.
        found.extend([vocabulary.setdefault(word, len(vocabulary)) << 32 | i for word in tokens])
    keys, counts = np.unique(np.frombuffer(found, dtype=np.int64), return_counts=True)
    terms, sizes = np.unique(keys >> 32, return_counts=True)
    new = path.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    with (new / "words.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{word}\n" for word in islice(vocabulary, known, None))
    np.save(new / "lengths.npy", np.frombuffer(lengths, dtype=np.int32))
    np.save(new / "terms.npy", terms.astype(np.int32))
    np.save(new / "ends.npy", np.cumsum(sizes))
    np.save(new / "documents.npy", ((keys & 0xFFFFFFFF) + start).astype(np.int32))
    np.save(new / "counts.npy", counts.astype(np.min_scalar_type(counts.max(initial=0))))
    new.rename(path)


def _merge(runs: list[_Run], num_words: int, path: Path, k1: float, b: float) -> None:
    """Write scores and documents of all runs, word by word, and where each word begins."""
    frequencies = np.zeros(num_words, dtype=np.int64)
    for run in runs:
        terms, sizes, _ = run.part(0, num_words)
        frequencies[terms] += sizes
    indptr = np.concatenate([[0], np.cumsum(frequencies)])
    lengths = np.concatenate([run.lengths for run in runs])
    size, number = int(indptr[-1]), len(lengths)
    idf = np.log(1 + (number - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    discount = k1 * (1 - b + b * lengths / lengths.mean())
    with _file(path, "data").open("wb") as data, _file(path, "indices").open("wb") as indices:
        _write_header(data, np.float32, size)
        _write_header(indices, np.int32, size)
        for first, last in progress(list(_parts(indptr)), "merging", unit="part"):
            documents, counts = _merge_part(runs, first, last, indptr[first : last + 1] - indptr[first])
            scores = np.repeat(idf[first:last], frequencies[first:last]) * (counts / (discount[documents] + counts))
            data.write(scores.astype(np.float32).data)
            indices.write(documents.data)
    np.save(_file(path, "indptr"), indptr)


def _parts(indptr: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Words [first, last) that fit into the memory together, at least one."""
    first = 0
    while first < len(indptr) - 1:
        last = int(np.searchsorted(indptr, indptr[first] + _POSTINGS_A_MERGE, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _merge_part(
    runs: list[_Run], first: int, last: int, begins: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Documents and counts of the terms in [first, last), by term and document; ``begins`` says where each starts."""
    documents = np.empty(begins[-1], dtype=np.int32)
    counts = np.empty(begins[-1], dtype=np.int64)
    heads = begins.copy()
    for run in runs:
        terms, sizes, rows = run.part(first, last)
        places = np.repeat(heads[terms - first] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
        documents[places], counts[places] = run.rows(rows)
        heads[terms - first] += sizes
    return documents, counts


def _write_header(file: BinaryIO, dtype: type[np.generic], size: int) -> None:
    about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(file, about)


def _write_vocabulary(vocabulary: dict[str, int], path: Path) -> None:
    """For bm25s its JSON object; for us the files of `Vocabulary`."""
    with (path / "vocab.index.json").open("w", encoding="utf-8") as file:
        for word, term in vocabulary.items():
            file.write(f"{', ' if term else '{'}{json.dumps(word, ensure_ascii=False)}: {term}")
        file.write("}")
    keys = [word.encode() for word in vocabulary]
    with (path / "words.bin").open("wb") as file:
        file.writelines(keys)
    np.save(path / "words.starts.npy", np.cumsum([0, *map(len, keys)]))
    np.save(path / "words.slots.npy", _hash_table(keys))
