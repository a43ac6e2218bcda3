"""Dense retrieval: documents whose vectors are nearest to the query's, on Hugging Face encoders and faiss.

Karpukhin et al. 2020, "Dense Passage Retrieval for Open-Domain Question Answering", arXiv 2004.04906. As in Search-R1,
a passage is encoded as the encoder's prefix and its ``contents``, a title in double quotes, a newline and the text; the
score is the inner product.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from search_gym._progress import progress
from search_gym.corpus import Corpus, format_contents
from search_gym.errors import IndexFileError, OptionError
from search_gym.retrievers import Document, _faiss
from search_gym.retrievers._encoders import DEFAULT, Encoder, encode, is_same, load_encoder, record, reopen
from search_gym.retrievers._index import begin, finish, open_index
from search_gym.retrievers._models import Compute, Floats, Runtime
from search_gym.retrievers._presets import Pooling
from search_gym.retrievers._ranking import check_documents, check_k, pick

SCORE_TOLERANCE = 1e-5
"""Rounding: a text's vector is computed in another order beside other texts. For fp32; see docs/dense.md for less."""
_TEXTS_AT_A_TIME = 1024


class DenseRetriever:
    """Ranks documents by the inner product of their vectors, in a faiss index, with the query's.

    Ties go to the document that comes first in the corpus. An exact index always returns min(k, number of documents).
    """

    def __init__(
        self, documents: Sequence[Document], encoder: Encoder, faiss_index: Any, *, threads: int | None = None
    ) -> None:
        self.documents = documents
        self.encoder = encoder
        self._faiss_index = faiss_index
        self._threads = threads

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises OptionError: ``k`` is below 1. RetrievalError: the encoder makes no vectors."""
        check_k(k)
        if not queries:
            return []
        different = list(dict.fromkeys(queries))
        vectors = encode(self.encoder, "queries", different)
        found = _faiss.search(self._faiss_index, vectors, k, self._threads)
        rows = [row for some, _ in found for row in some]
        waiting = iter(pick(self.documents, rows, [score for _, some in found for score in some]))
        results = {query: list(islice(waiting, len(some))) for query, (some, _) in zip(different, found, strict=True)}
        return [list(results[query]) for query in queries]


def make(
    documents: Sequence[Document],
    *,
    index: str | Path | None = None,
    encoder: str | None = None,
    preset: str | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    runtime: Runtime | None = None,
    faiss: str = "Flat",
    nprobe: int = 32,
    ef_search: int = 128,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    threads: int | None = None,
) -> DenseRetriever:
    """A retriever over ``documents``, encoded now and held in memory, or over the saved ``index``.

    Args:
        index: folder that `build` made. What decides a vector was stored there and cannot be given again.
        encoder: a preset (default "e5-base-v2"), a directory, a name on the Hugging Face hub, or
            "package.module:attribute", which is called to make an `Encoder`. With ``index``: where its model is now.
        preset: the preset to use with the model in a directory.
        query_prefix: what stands before a query. This and the next four: of the encoder, where no preset knows them.
        passage_prefix: what stands before a passage.
        pooling: "mean" or "cls".
        normalize: whether vectors get length 1.
        max_length: tokens of a text that are read.
        runtime: "torch" or "onnx"; by default torch, unless the directory has an ONNX file alone.
        faiss: factory string: Flat, HNSW32, IVF1024,PQ64 and so on.
        nprobe: inverted lists that an IVF index looks into.
        ef_search: candidates that an HNSW graph keeps.
        device: "auto" is a GPU if there is one.
        precision: "fp32", "fp16" (GPU) or "bf16".
        batch_size: texts encoded at a time.
        threads: of the CPU, for faiss and ONNX; as many as they like by default.

    Raises:
        CorpusError: no documents.
        OptionError: options out of range, or both documents and an index.
        IndexFileError: no usable index, or an encoder that makes other vectors.
        MissingDependencyError: a library is missing.
    """
    compute = Compute(device, precision, batch_size, threads)
    if nprobe < 1 or ef_search < 1:
        raise OptionError(f"expected nprobe >= 1 and ef_search >= 1, got {nprobe} and {ef_search}; do: correct them")
    recipe: dict[str, Any] = {
        "preset": preset,
        "query_prefix": query_prefix,
        "passage_prefix": passage_prefix,
        "pooling": pooling,
        "normalize": normalize,
        "max_length": max_length,
        "runtime": runtime,
    }
    if index is None:
        documents = check_documents(documents)
        loaded = load_encoder(encoder or DEFAULT, compute=compute, **recipe)
        faiss_index = _index_in_memory(documents, loaded, faiss)
    else:
        given = [name for name, value in recipe.items() if value is not None] + ["faiss"] * (faiss != "Flat")
        if len(documents) or given:
            what = f"options {given}" if given else "documents"
            raise OptionError(f"expected no {what} beside index={str(index)!r}, which has its own; do: leave them out")
        saved = open_index(index, "dense")
        try:
            about, faiss = saved.options["encoder"], saved.options["faiss"]
        except KeyError as error:
            raise IndexFileError(f"{index}: expected {error} in index.json, got none; do: build it anew") from error
        try:
            loaded = reopen(about, encoder, compute)
        except IndexFileError as error:
            raise IndexFileError(f"{index}: {error}") from error
        documents = saved.corpus
        faiss_index = _faiss.read(saved.path / "index.faiss", loaded.dimension, len(documents))
    _faiss.set_effort(faiss_index, faiss, nprobe=nprobe, ef_search=ef_search)
    return DenseRetriever(documents, loaded, faiss_index, threads=threads)


def _index_in_memory(documents: Sequence[Document], encoder: Encoder, factory: str) -> Any:
    index = _faiss.create(factory, encoder.dimension)
    waiting = progress(documents, "encoding documents", total=len(documents))
    if index.is_trained:
        _faiss.add(index, _encoded(encoder, waiting))
    else:
        vectors = np.concatenate(list(_encoded(encoder, waiting)))
        _train_and_add(index, factory, [vectors], None)
    return index


def _encoded(encoder: Encoder, documents: Iterable[Document]) -> Iterator[Floats]:
    """The vectors of ``documents``, about a thousand at a time."""
    waiting = iter(documents)
    while some := list(islice(waiting, _TEXTS_AT_A_TIME)):
        yield encode(encoder, "passages", [format_contents(document) for document in some])


def _train_and_add(index: Any, factory: str, parts: Sequence[Floats], train_size: int | None) -> None:
    if not index.is_trained:
        size = sum(map(len, parts))
        rows = _faiss.sample_rows(size, train_size or _faiss.training_size(factory))
        _faiss.train(index, factory, _faiss.gather(parts, rows))
    _faiss.add(index, progress(parts, "adding vectors", total=len(parts), unit="shard"))


def build(
    corpus: Corpus,
    path: Path,
    *,
    encoder: str = DEFAULT,
    preset: str | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    runtime: Runtime | None = None,
    faiss: str = "Flat",
    train_size: int | None = None,
    shard_size: int = 10_000,
    keep_vectors: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    threads: int | None = None,
) -> None:
    """Encode ``corpus`` and write an index into the folder ``path``; the options are those of `make`, and these.

    Vectors are written to ``vectors/`` in shards of ``shard_size`` documents. A build that was killed goes on with the
    shard that it was at; when the index is complete they are deleted, unless ``keep_vectors``. An index with centroids
    is trained on ``train_size`` of them (by default 64 for each list of an IVF, at least 65,536).

    Raises:
        OptionError: options out of range, or other ones than those with which a killed build began.
    """
    if shard_size < 1 or (train_size is not None and train_size < 1):
        raise OptionError(f"expected shard_size and train_size >= 1, got {shard_size} and {train_size}; do: correct it")
    loaded = load_encoder(
        encoder,
        compute=Compute(device, precision, batch_size, threads),
        preset=preset,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        pooling=pooling,
        normalize=normalize,
        max_length=max_length,
        runtime=runtime,
    )
    faiss_index = _faiss.create(faiss, loaded.dimension)  # before hours of encoding: the description may be wrong
    begin(path)
    about = record(encoder, loaded, precision)
    shards = _encode_shards(corpus, path / "vectors", loaded, about, shard_size)
    file = path / "index.faiss"
    if _faiss.is_flat(faiss):
        _faiss.write_flat(
            file, loaded.dimension, len(corpus), progress(shards, "writing", total=len(shards), unit="shard")
        )
    else:
        _train_and_add(faiss_index, faiss, shards, train_size)
        _faiss.write(faiss_index, file)
    finish(path, "dense", corpus, {"encoder": about, "faiss": faiss})
    if not keep_vectors:
        del shards
        shutil.rmtree(path / "vectors")


def _encode_shards(
    corpus: Corpus, folder: Path, encoder: Encoder, about: dict[str, Any], shard_size: int
) -> list[Floats]:
    """The vectors of ``corpus`` memory-mapped in shards, of which those that are missing in ``folder`` are made."""
    _check_plan(folder, {"encoder": about, "fingerprint": corpus.fingerprint, "shard_size": shard_size})
    starts = range(0, len(corpus), shard_size)
    files = {folder / f"{start:010d}.npy": range(start, min(start + shard_size, len(corpus))) for start in starts}
    missing = {file: rows for file, rows in files.items() if not file.is_file()}
    documents = chain.from_iterable(map(partial(_read, corpus), missing.values()))
    waiting = progress(documents, "encoding documents", total=sum(map(len, missing.values())))
    for file, rows in missing.items():
        vectors = np.concatenate(list(_encoded(encoder, islice(waiting, len(rows)))))
        new = file.with_suffix(".new")
        with new.open("wb") as opened:
            np.save(opened, vectors)
        new.replace(file)
    return [np.load(file, mmap_mode="r") for file in files]


def _read(corpus: Corpus, rows: range) -> Iterator[Document]:
    for start in range(0, len(rows), _TEXTS_AT_A_TIME):
        yield from corpus.take(rows[start : start + _TEXTS_AT_A_TIME])


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Keep what the shards in ``folder`` are made with, or compare it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    if not file.is_file():
        new = file.with_suffix(".new")
        new.write_text(json.dumps(plan, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(file)
    begun = json.loads(file.read_text(encoding="utf-8"))
    different = [key for key in ("fingerprint", "shard_size") if begun[key] != plan[key]]
    then, now = begun["encoder"], plan["encoder"]
    if then["precision"] != now["precision"] or not is_same(then, now):
        different.append("encoder")
    if different:
        raise OptionError(
            f"expected to go on in {folder} as the build began, got another {' and '.join(different)}; "
            "do: give the options of the first time, or delete the folder"
        )
