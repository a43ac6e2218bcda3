"""Nearest vectors by inner product, on faiss (Douze et al. 2024, arXiv 2401.08281)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.errors import IndexFileError, OptionError
from search_gym.plugins import require
from search_gym.retrievers._models import Floats

_ROWS_A_BATCH = 16_384
_MOST_TIED = 1024


def is_flat(factory: str) -> bool:
    """Whether the index is the vectors themselves."""
    return factory == "Flat"


def create(factory: str, dimension: int) -> Any:
    """An empty index.

    Raises:
        OptionError: faiss does not know the description ``factory``, or not with this many dimensions.
    """
    faiss = require("faiss", extra="dense")
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise OptionError(
            f"expected a faiss factory string for {dimension} dimensions, such as Flat, HNSW32 or IVF1024,PQ64, got "
            f"{factory!r}: {_reason(error)}; do: correct it"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2].rpartition("Error: ")[2]


def training_size(factory: str) -> int:
    """How many vectors to train on: 64 for each of the lists of an IVF, and 65,536 at least (256 for each code)."""
    lists = re.search(r"IVF(\d+)", factory)
    return max(65_536, 64 * int(lists[1]) if lists else 0)


def train(index: Any, factory: str, vectors: Floats) -> None:
    """Find the index's centroids from a sample ``vectors`` (n, d).

    Raises:
        OptionError: there are too few.
    """
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise OptionError(
            f"expected enough documents to train {factory!r} on, got {len(vectors)}: {_reason(error)}; "
            "do: fewer lists or codes, or Flat"
        ) from error


def add(index: Any, parts: Iterable[Floats]) -> None:
    """Add vectors (n, d), of which ``parts`` may be memory-mapped."""
    for part in parts:
        for start in range(0, len(part), _ROWS_A_BATCH):
            index.add(np.ascontiguousarray(part[start : start + _ROWS_A_BATCH], dtype=np.float32))


def write(index: Any, path: Path) -> None:
    """Write the index whole or not at all."""
    new = path.with_suffix(".new")
    require("faiss", extra="dense").write_index(index, str(new))
    new.replace(path)


def write_flat(path: Path, dimension: int, size: int, parts: Iterable[Floats]) -> None:
    """Write what `write` would for a flat index of the vectors in ``parts``, with one part in memory at a time."""
    faiss = require("faiss", extra="dense")
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    # faiss's own header of an empty index, with the number of vectors after the tag and the dimension, and that of
    # their numbers at the end.
    struct.pack_into("<q", header, 8, size)
    struct.pack_into("<Q", header, len(header) - 8, size * dimension)
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.write(header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f4").data)
    new.replace(path)


def read(path: Path, dimension: int, size: int) -> Any:
    """The index in the file ``path``, memory-mapped.

    Raises:
        IndexFileError: it is missing, damaged, or has another size.
    """
    faiss = require("faiss", extra="dense")
    try:
        # IO_FLAG_MMAP maps inverted lists only; this one maps flat vectors and graphs too.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise IndexFileError(f"{path}: expected an index of faiss, got {_reason(error)}; do: build it anew") from error
    if (index.d, index.ntotal) != (dimension, size):
        raise IndexFileError(
            f"{path}: expected {size} vectors of {dimension} numbers, got {index.ntotal} of {index.d}; "
            "do: build it anew"
        )
    return index


def set_effort(index: Any, factory: str, *, nprobe: int, ef_search: int) -> None:
    """How many inverted lists an IVF looks into, and how many candidates an HNSW graph keeps."""
    space = require("faiss", extra="dense").ParameterSpace()
    if "IVF" in factory:
        space.set_index_parameter(index, "nprobe", nprobe)
    if "HNSW" in factory:
        space.set_index_parameter(index, "quantizer_efSearch" if "IVF" in factory else "efSearch", ef_search)


def search(index: Any, queries: Floats, k: int, threads: int | None) -> list[tuple[list[int], list[float]]]:
    """For each of ``queries`` (n, d), the rows of the at most ``k`` best vectors and their scores, best first.

    Equal scores are in the order of the rows. faiss leaves to chance which of the equal ones end its list, so more are
    asked for until the list ends with one that is worse than the ``k``-th, up to `_MOST_TIED`.
    """
    width = min(k + 8, index.ntotal)
    with _using(threads):
        rows, scores = _nearest(index, queries, width)
        best_rows, best_scores = rows[:, :k].tolist(), scores[:, :k].tolist()
        open_ended = np.flatnonzero(_is_open(rows, scores, k)).tolist() if k < width else []
        for i in open_ended:
            wider, one_rows, one_scores = width, rows[i : i + 1], scores[i : i + 1]
            while wider < min(index.ntotal, _MOST_TIED) and _is_open(one_rows, one_scores, k)[0]:
                wider = min(4 * wider, index.ntotal)
                one_rows, one_scores = _nearest(index, queries[i : i + 1], wider)
            best_rows[i], best_scores[i] = one_rows[0, :k].tolist(), one_scores[0, :k].tolist()
    return [_found(one, some) for one, some in zip(best_rows, best_scores, strict=True)]


def _found(rows: list[int], scores: list[float]) -> tuple[list[int], list[float]]:
    """Both without their ends, where faiss found no more and says so by the row -1."""
    count = rows.index(-1) if rows and rows[-1] < 0 else len(rows)
    return rows[:count], scores[:count]


def _nearest(index: Any, queries: Floats, width: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """The rows and scores (n, width) of the best, by score and then by row."""
    scores, rows = index.search(queries, width)
    if (scores[:, 1:] < scores[:, :-1]).all():  # the common case, at a tenth of the cost of sorting
        return rows, scores
    order = np.lexsort((rows, -scores), axis=-1)
    return np.take_along_axis(rows, order, -1), np.take_along_axis(scores, order, -1)


def _is_open(rows: npt.NDArray[np.int64], scores: Floats, k: int) -> npt.NDArray[np.bool_]:
    """Whether vectors that are not in a list may be as good as its ``k``-th."""
    return (rows[:, -1] >= 0) & (scores[:, k - 1] == scores[:, -1])


@contextmanager
def _using(threads: int | None) -> Iterator[None]:
    """faiss with as many threads; the number is put back, because torch may share it."""
    faiss = require("faiss", extra="dense")
    if threads is None:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def sample_rows(size: int, most: int) -> npt.NDArray[np.int64]:
    """Rows of at most ``most`` of ``size`` vectors, drawn evenly without repetition, in order, always the same."""
    if size <= most:
        return np.arange(size)
    return np.sort(np.random.default_rng(0).choice(size, most, replace=False))


def gather(parts: Sequence[Floats], rows: npt.NDArray[np.int64]) -> Floats:
    """The vectors in ascending ``rows`` of ``parts``, counted on from one to the next."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    bounds = np.searchsorted(rows, starts)
    chosen = [
        part[rows[low:high] - start]
        for part, start, low, high in zip(parts, starts[:-1], bounds[:-1], bounds[1:], strict=True)
    ]
    return np.ascontiguousarray(np.concatenate(chosen), dtype=np.float32)
