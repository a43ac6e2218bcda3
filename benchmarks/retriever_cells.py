"""What `benchmarks.retrievers` measures: ``python -m benchmarks.retriever_cells JSON`` is one cell.

Times are CPU seconds of one thread, so that other processes hardly disturb them, and what is compared takes turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import corpora
from search_gym import Document, retrievers
from search_gym.corpus import Corpus, read_passages, write_corpus
from search_gym.retrievers import Retriever, _faiss, bm25, dense
from search_gym.retrievers._ranking import words

ENCODER = "benchmarks.hashing_encoder:HashingEncoder"
NUM_QUESTIONS = 512
BATCHES = {1: 256, 64: 24, 512: 9}
"""Batch size: rounds; fewer, but two at least, if they take longer than `SECONDS_A_BATCH_SIZE`."""
SECONDS_A_BATCH_SIZE = 20.0  # of CPU
TOP_K = (1, 3, 10)
Search = Callable[[Sequence[str], int], list[list[str]]]


@dataclass(frozen=True)
class Cell:
    """One measurement. ``kind`` is "bm25" or a factory string of faiss; ``size`` 0 means the real corpus ``data``."""

    measure: str
    corpus: str
    kind: str
    size: int
    work_dir: str
    data: str = ""
    model: str = ""

    @property
    def key(self) -> str:
        return " / ".join(part for part in (self.corpus, self.kind, self.measure) if part)

    @property
    def corpus_path(self) -> Path:
        return Path(self.work_dir) / self.corpus / "corpus"

    @property
    def index_path(self) -> Path:
        return Path(self.work_dir) / self.corpus / self.kind.replace(",", "-")

    def documents(self) -> Iterator[Document]:
        if self.size:
            yield from corpora.documents(self.size)
        for name in self.names:
            yield from read_passages(Path(self.data) / f"{name}_corpus.jsonl")

    @property
    def names(self) -> list[str]:
        """The data sets whose passages and questions the real corpus joins."""
        found = sorted(path.name.removesuffix("_corpus.jsonl") for path in Path(self.data).glob("*_corpus.jsonl"))
        return found if self.corpus == "all data sets" else [name for name in found if name == self.corpus]

    def questions(self) -> list[tuple[str, set[str]]]:
        """Questions, each with the ids of the documents that it was made of, or that support its answer."""
        if self.size:
            return [(text, {doc_id}) for text, doc_id in corpora.questions(NUM_QUESTIONS, self.size)]
        found: list[tuple[str, set[str]]] = []
        for name in self.names:
            for line in (Path(self.data) / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                found.append((row["question"], set(row["metadata"]["supporting_ids"])))
        return found

    def open(self, **options: Any) -> Retriever:
        # The same backend everywhere, whatever "auto" would take for the size.
        own = {"backend": "numba"} if self.kind == "bm25" else {"threads": 1}
        return retrievers.load(self.retriever, index=str(self.index_path), **{**own, **options})

    @property
    def retriever(self) -> str:
        return "bm25" if self.kind == "bm25" else "dense"


def memory() -> dict[str, float]:
    """MiB of this process: the peak of all that was resident, and what it holds now beside mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    fields = {"peak_rss_mb": "VmHWM", "own_mb": "RssAnon"}
    return {name: round(int(status[field].split()[0]) / 1024, 1) for name, field in fields.items()}


def size_mb(path: Path) -> float:
    """Megabytes (10^6) of the files in ``path``."""
    return round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6, 1)


def measure_corpus(cell: Cell) -> dict[str, Any]:
    """Write the memory-mapped corpus."""
    corpus = write_corpus(cell.documents(), cell.corpus_path)
    return {"num_documents": len(corpus), "size_mb": size_mb(cell.corpus_path), **memory()}


def measure_build(cell: Cell) -> dict[str, Any]:
    """Build the index of a corpus that is on disk."""
    corpus = Corpus(cell.corpus_path)
    wall, cpu = time.perf_counter(), time.process_time()
    if cell.kind == "bm25":
        bm25.build(corpus, cell.index_path)
    else:
        dense.build(corpus, cell.index_path, encoder=ENCODER, faiss=cell.kind, threads=1)
    seconds = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return {**{k: round(v, 2) for k, v in seconds.items()}, "size_mb": size_mb(cell.index_path), **memory()}


def measure_serve(cell: Cell) -> dict[str, Any]:
    """Open the index, search, and hold the results against exact search and the questions' own documents."""
    start = time.perf_counter()
    retriever = cell.open()
    opened = time.perf_counter() - start
    questions = cell.questions()
    texts = [text for text, _ in questions]
    results = retriever.search(texts, max(TOP_K))
    rates = {
        str(batch): round(batch / statistics.median(seconds["ours"]), 1)
        for batch, seconds in take_turns({"ours": ids_of(retriever)}, texts).items()
    }
    used = memory()
    found = [[document.doc_id for document in documents] for documents in results]
    gold = {k: [len(ids & set(f[:k])) / len(ids) for f, (_, ids) in zip(found, questions, strict=True)] for k in TOP_K}
    return {
        "open_seconds": round(opened, 3),
        "queries_per_second": rates,
        **used,
        "gold_recall": {str(k): round(statistics.fmean(values), 4) for k, values in gold.items()},
        "recall": recall(cell, texts, results),
    }


def recall(cell: Cell, texts: list[str], results: list[list[Document]]) -> dict[str, float]:
    """Share of the documents of exact search that were found: of bm25's numpy backend, or of a flat index."""
    number = min(64, len(texts))
    if cell.kind == "bm25":
        exact = ids_of(cell.open(backend="numpy"))
    else:
        flat = Cell(**{**asdict(cell), "kind": "Flat"})
        exact = ids_of(flat.open())
    wanted = exact(texts[:number], max(TOP_K))
    shares: dict[str, float] = {}
    for k in TOP_K:
        pairs = [({d.doc_id for d in a[:k]}, set(b[:k])) for a, b in zip(results[:number], wanted, strict=True)]
        shares[str(k)] = round(statistics.fmean(len(a & b) / len(b) for a, b in pairs if b), 4)
    return shares


def measure_compare(cell: Cell) -> dict[str, Any]:
    """Our search and the library called directly, in turns: the median ratio of their times in one round."""
    texts = [text for text, _ in cell.questions()]
    contestants = {"ours": ids_of(cell.open()), "direct": direct(cell)}
    times = take_turns(contestants, texts)
    ratios = {
        batch: statistics.median(a / b for a, b in zip(rounds["ours"], rounds["direct"], strict=True))
        for batch, rounds in times.items()
    }
    rates = {batch: batch / statistics.median(rounds["direct"]) for batch, rounds in times.items()}
    return {
        "time_ours_over_direct": {str(batch): round(ratio, 3) for batch, ratio in ratios.items()},
        "direct_queries_per_second": {str(batch): round(rate, 1) for batch, rate in rates.items()},
        "rounds": {str(batch): len(rounds["ours"]) for batch, rounds in times.items()},
    }


def ids_of(retriever: Retriever) -> Search:
    return lambda queries, k: [[d.doc_id for d in documents] for documents in retriever.search(queries, k)]


def direct(cell: Cell) -> Search:
    """The library underneath with its own, or its users' usual, store of documents."""
    return direct_bm25s(cell) if cell.kind == "bm25" else direct_faiss(cell)


def direct_bm25s(cell: Cell) -> Search:
    """bm25s's numba backend and memory-mapped corpus, on the same index and words."""
    import bm25s
    from bm25s.utils.corpus import JsonlCorpus, find_newline_positions, save_mmindex

    lines = Path(cell.work_dir) / cell.corpus / "bm25s" / "corpus.jsonl"
    if not lines.exists():
        lines.parent.mkdir(exist_ok=True)
        rows = ({"id": d.doc_id, "title": d.title, "text": d.text} for d in Corpus(cell.corpus_path))
        new = lines.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        save_mmindex(find_newline_positions(new, show_progress=False), path=lines)
        new.rename(lines)
    model = bm25s.BM25.load(cell.index_path, mmap=True, backend="numba", show_progress=False)
    documents: Any = JsonlCorpus(lines)  # bm25s says that it wants a list, and handles this

    def search(queries: Sequence[str], k: int) -> list[list[str]]:
        tokens = [words(query) for query in queries]
        found = model.retrieve(tokens, corpus=documents, k=k, show_progress=False, n_threads=1)
        return [[document["id"] for document in row] for row in found[0]]

    return search


def direct_faiss(cell: Cell) -> Search:
    """faiss on the same file with the same encoder; the documents come out of a memory-mapped `datasets.Dataset`."""
    import datasets
    import faiss

    retriever = cell.open()
    assert isinstance(retriever, dense.DenseRetriever)
    index = _faiss.read(cell.index_path / "index.faiss", retriever.encoder.dimension, len(retriever.documents))
    _faiss.set_effort(index, cell.kind, nprobe=32, ef_search=128)
    faiss.omp_set_num_threads(1)
    table = datasets.Dataset.from_file(str(cell.corpus_path / "corpus.arrow"))

    def search(queries: Sequence[str], k: int) -> list[list[str]]:
        _, rows = index.search(retriever.encoder.encode_queries(list(queries)), k)
        ids = table[rows.ravel().tolist()]["id"]
        return [ids[i : i + k] for i in range(0, len(ids), k)]

    return search


def take_turns(contestants: dict[str, Search], texts: Sequence[str]) -> dict[int, dict[str, list[float]]]:
    """CPU seconds of each contestant for a batch of each size, round by round, after one round that does not count."""
    times: dict[int, dict[str, list[float]]] = {}
    for batch, rounds in BATCHES.items():
        times[batch] = {name: [] for name in contestants}
        began = time.process_time()
        for i in range(-1, rounds):
            some = [texts[(max(i, 0) * batch + j) % len(texts)] for j in range(batch)]
            for name in sorted(contestants, reverse=bool(i % 2)):
                start = time.process_time()
                contestants[name](some, 3)
                if i >= 0:
                    times[batch][name].append(time.process_time() - start)
            if i < 0:
                began = time.process_time()  # compiling and reading files for the first time takes long
            elif i >= 1 and time.process_time() - began > SECONDS_A_BATCH_SIZE:
                break
    return times


def measure_encoding(cell: Cell) -> dict[str, Any]:
    """How fast a real encoder makes vectors of the corpus's first passages and of questions, on one thread."""
    import torch

    torch.set_num_threads(1)
    number = 256
    compute = dense.Compute("cpu", "fp32", 64, 1)
    encoder = dense.load_encoder(cell.model, compute=compute)
    passages = [dense.format_contents(document) for document in Corpus(cell.corpus_path)[:number]]
    texts = [text for text, _ in cell.questions()][:number]
    seconds = {}
    for name, method, items in (
        ("passages", encoder.encode_passages, passages),
        ("queries", encoder.encode_queries, texts),
    ):
        method(items[:8])
        start = time.process_time()
        method(items)
        seconds[f"{name}_per_second"] = round(len(items) / (time.process_time() - start), 1)
    return {**seconds, "dimension": encoder.dimension, **memory()}


MEASURES: dict[str, Callable[[Cell], dict[str, Any]]] = {
    "corpus": measure_corpus,
    "build": measure_build,
    "serve": measure_serve,
    "compare": measure_compare,
    "encoding": measure_encoding,
}

if __name__ == "__main__":
    asked = Cell(**json.loads(sys.argv[1]))
    print(json.dumps(MEASURES[asked.measure](asked)))
