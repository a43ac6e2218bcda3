"""Retrieval at scale, measured: build time, size, memory, queries per second, recall, and overhead over the libraries.

    python -m benchmarks.retrievers
    python -m benchmarks.retrievers --sizes 10000 100000 --kinds bm25 Flat --data DIR
    python -m benchmarks.retrievers --in-env --help      # trains agents with each retriever instead

Every cell (a corpus, a kind of index, a measure) runs in a process of its own with one thread, and times are CPU time;
`benchmarks.retriever_cells` says how. Generated corpora are those of `benchmarks.corpora`. Dense vectors are made by
`benchmarks.hashing_encoder`, so that what is measured is faiss and the way to it, not encoding. Finished cells are kept
in the output file, also when the run is stopped, and measured again only with ``--again``. The tables in
``docs/scale.md`` are remade at the end. The default takes about an hour and 8 GB of disk.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from agents.runlog import write_json
from benchmarks.retriever_cells import Cell
from benchmarks.scale_page import write_page
from search_gym.errors import OptionError, SearchGymError

PACKAGES = ("bm25s", "faiss-cpu", "numba", "numpy", "pyarrow")
GENERATED = ("bm25", "Flat", "HNSW32", "IVF,PQ32")
ALL = "all data sets"


@dataclass(frozen=True)
class ScaleConfig:
    """Options of the benchmark."""

    sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of generated documents."""
    kinds: tuple[str, ...] = GENERATED
    """"bm25" and factory strings of faiss; in "IVF,PQ32" the number of lists is chosen for the size."""
    data: Path | None = None
    """Folder with NAME.jsonl and NAME_corpus.jsonl; BM25 is measured on each of these corpora and on all joined."""
    model: str | None = None
    """An encoder whose speed is measured: a directory, a preset or a name on the hub."""
    work_dir: Path = Path("runs/retrievers")
    """Where corpora and indexes are kept."""
    output: Path = Path("benchmarks/results/retrievers.json")
    """The JSON file to write; cells that it already has are kept."""
    again: bool = False
    """Measure cells again that are in the output file."""


def factory(kind: str, size: int) -> str:
    """``kind`` with a number of inverted lists where it lacks one: the power of two below the root of ``size``."""
    return kind.replace("IVF,", f"IVF{2 ** ((size.bit_length() - 1) // 2)},")


def cells(config: ScaleConfig) -> Iterator[Cell]:
    """What there is to measure, in the order in which it has to be done."""
    common: dict[str, Any] = {"work_dir": str(config.work_dir)}
    for size in config.sizes:
        name = f"{size:,}".replace(",", "_")
        yield Cell("corpus", name, "", size, **common)
        for kind in (factory(kind, size) for kind in config.kinds):
            for measure in ("build", "serve", "compare"):
                yield Cell(measure, name, kind, size, **common)
    if config.model and config.sizes:
        size, name = config.sizes[0], Path(config.model).name
        yield Cell("encoding", f"{size:,}".replace(",", "_"), name, size, model=config.model, **common)
    if config.data:
        names = sorted(path.name.removesuffix("_corpus.jsonl") for path in config.data.glob("*_corpus.jsonl"))
        if not names:
            raise OptionError(f"expected NAME.jsonl and NAME_corpus.jsonl in {config.data}, got none; do: check --data")
        for name in (*names, ALL):
            for measure in ("corpus", "build", "serve", "compare"):
                kind = "" if measure == "corpus" else "bm25"
                yield Cell(measure, name, kind, 0, data=str(config.data), **common)


def run(cell: Cell) -> dict[str, Any]:
    """Measure ``cell`` in a process of its own."""
    one = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    command = [sys.executable, "-m", "benchmarks.retriever_cells", json.dumps(asdict(cell))]
    done = subprocess.run(command, env=os.environ | one, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SearchGymError(f"expected {cell.key!r} to be measured, got exit status {done.returncode}; do: see above")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def main(config: ScaleConfig, command: str) -> None:
    """Measure what is missing and write it down after every cell."""
    config.work_dir.mkdir(parents=True, exist_ok=True)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {}
    if config.output.exists():
        known = json.loads(config.output.read_text(encoding="utf-8"))["cells"]
    todo = [cell for cell in cells(config) if config.again or needs(cell, known)]
    with tqdm(todo, unit=" cell") as bar:
        for cell in bar:
            bar.set_description(cell.key)
            known[cell.key] = {"corpus": cell.corpus, "kind": cell.kind, "measure": cell.measure, **run(cell)}
            known[cell.key]["command"] = command
            write_json(config.output, {"machine": machine(), "cells": known})
    write_page(config.output)


def needs(cell: Cell, known: Mapping[str, Any]) -> bool:
    """Whether the cell has no figures, or what it leaves on disk for later cells is gone."""
    left = {"corpus": cell.corpus_path / "corpus.json", "build": cell.index_path / "index.json"}.get(cell.measure)
    return cell.key not in known or (left is not None and not left.exists())


if __name__ == "__main__":
    if "--in-env" in sys.argv:
        from benchmarks import retrievers_in_env

        retrievers_in_env.main([argument for argument in sys.argv[1:] if argument != "--in-env"])
    else:
        asked = tyro.cli(ScaleConfig, description=__doc__)
        try:
            main(asked, shlex.join(["python", "-m", "benchmarks.retrievers", *sys.argv[1:]]))
        except SearchGymError as error:
            raise SystemExit(f"error: {error}") from error
