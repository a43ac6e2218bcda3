"""What it costs to open the training mixture and to draw questions from it, beside holding them all in memory.

    python -m benchmarks.question_tables

Makes files of the size and layout of NQ's and HotpotQA's train splits (79,168 questions; 90,447 with ten paragraphs
each, 0.6 GB) with invented words, in a temporary folder. Writes ``benchmarks/results/question_tables.json`` and the
table in ``docs/data.md``. Takes a minute.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.runlog import command_line, write_json
from search_gym import questions
from search_gym.questions import nq_hotpotqa

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/data.md"
RESULTS = ROOT / "benchmarks/results/question_tables.json"
BEGIN = "<!-- cost:begin (made by `python -m benchmarks.question_tables`; do not edit) -->"
END = "<!-- cost:end -->"
DRAWS = 20_000
WAYS = {"first": "the first time, with conversion", "table": "from then on", "memory": "`streaming=True`, in memory"}


def write_files(folder: Path) -> int:
    """Invented questions as long as the real ones; returns the bytes written."""
    generator = random.Random(0)
    vocabulary = ["".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9))) for _ in range(5000)]

    def words(number: int) -> str:
        return " ".join(generator.choices(vocabulary, k=number))

    for part in nq_hotpotqa.SET.parts:
        (folder / part.name).mkdir()
        with (folder / part.name / "train.jsonl").open("w", encoding="utf-8") as file:
            for i in range(part.sizes["train"]):
                row: dict[str, Any] = {"id": f"train_{i}", "question": words(9), "golden_answers": [words(2)]}
                if part.name == "hotpotqa":
                    context = {
                        "title": [words(2) for _ in range(10)],
                        "sentences": [[words(22)] * 4 for _ in range(10)],
                    }
                    row |= {"question": words(17), "metadata": {"type": "bridge", "context": context}}
                file.write(json.dumps(row) + "\n")
    return sum(file.stat().st_size for file in folder.rglob("*.jsonl"))


def private_megabytes() -> float:
    """Memory of this process that no file backs: what memory-mapping does not give back."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (kilobytes,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return kilobytes / 1000


def measure_one(folder: Path, *, streaming: bool) -> dict[str, float]:
    """Open the mixture in this process and draw questions at random."""
    importlib.import_module("datasets")  # so that its import is not counted
    before = private_megabytes()
    started = time.process_time()
    found = questions.load("nq_hotpotqa", "train", data_dir=folder, streaming=streaming)
    opened = time.process_time() - started
    indices = random.Random(0).choices(range(len(found)), k=DRAWS)
    started = time.process_time()
    texts = sum(len(found[i].text) for i in indices)
    drawn = time.process_time() - started
    assert texts > 0
    return {
        "questions": len(found),
        "open_seconds": opened,
        "draw_microseconds": 1e6 * drawn / DRAWS,
        "private_megabytes": private_megabytes() - before,
    }


def measure() -> dict[str, Any]:
    """Each way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "files")
        files.mkdir()
        size = write_files(files)
        environment = {**os.environ, "HF_HOME": str(Path(folder, "home")), "OMP_NUM_THREADS": "1"}
        results = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.question_tables", way, str(files)]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            results[way] = json.loads(done.stdout)
    return {"command": command_line(), "megabytes": size / 1e6, "ways": results}


def table(results: Mapping[str, Any]) -> str:
    """The results as a Markdown table."""
    number = results["ways"]["table"]["questions"]
    files = f"{number:,} questions, {results['megabytes']:,.0f} MB of files"
    lines = [
        f"| {files} | to open, CPU time | to draw one, CPU time | private memory |",
        "|---|---:|---:|---:|",
    ]
    for way, title in WAYS.items():
        row = results["ways"][way]
        opened = f"{row['open_seconds']:.1f} s" if row["open_seconds"] > 0.1 else f"{1e3 * row['open_seconds']:.0f} ms"
        lines.append(f"| {title} | {opened} | {row['draw_microseconds']:.1f} µs | {row['private_megabytes']:,.0f} MB |")
    return "\n".join(lines)


def with_table(page: str, results: Mapping[str, Any]) -> str:
    """``page`` with the table of ``results`` between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure_one(Path(sys.argv[2]), streaming=sys.argv[1] == "memory")))
    else:
        write_json(RESULTS, measure())
        measured = json.loads(RESULTS.read_text(encoding="utf-8"))
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")
