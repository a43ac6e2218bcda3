"""How fast does the retrieval server answer, and what does it do with more than it can answer?

    python -m benchmarks.server_load

A real ``search-gym serve`` over a BM25 index of generated passages, asked by asyncio clients on the same machine, each
on a connection of its own. First 1, 8 and 32 clients ask as fast as they are answered, with 1 and 2 workers: requests
per second, median and 99th percentile of the latency. Then requests arrive as a Poisson process at twice the highest
rate that was answered, whether earlier ones were answered or not: how many are refused with status 503, how long the
others take, and how the memory of the server goes.

Memory of workers is the resident set (RSS) and the proportional one (PSS, in which a page that n processes share counts
1/n), so that PSS shows what workers share. Writes one JSON file, and the tables of docs/server.md from it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from agents.runlog import write_text
from benchmarks.corpora import documents, questions
from benchmarks.pages import put
from benchmarks.server_clients import closed_loop, open_loop
from search_gym.corpus import format_contents

NUM_BODIES = 20
PAGE = Path("docs/server.md")


@dataclass(frozen=True)
class LoadConfig:
    """Options of the load test."""

    documents: int = 50_000
    """Generated passages in the index."""
    index: Path | None = None
    """Folder of an index to serve instead."""
    queries: int = 16
    """Queries in a request."""
    k: int = 3
    """Documents per query."""
    clients: tuple[int, ...] = (1, 8, 32)
    """Numbers of clients that ask at the same time."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of processes of the server."""
    seconds: float = 6.0
    """Length of each measurement; the overload lasts three times as long."""
    max_waiting: int = 32
    """What a worker of the server lets wait."""
    output: Path = Path("benchmarks/results/server_load.json")
    """The JSON file to write."""


def requests(config: LoadConfig) -> list[bytes]:
    """Bodies of requests, to be sent in turn."""
    texts = [text for text, _ in questions(NUM_BODIES * config.queries, config.documents)]
    parts = [texts[i : i + config.queries] for i in range(0, len(texts), config.queries)]
    return [json.dumps({"queries": part, "topk": config.k, "return_scores": True}).encode() for part in parts]


@contextmanager
def serving(index: Path, workers: int, config: LoadConfig) -> Iterator[tuple[int, list[int]]]:
    """A server; its port and the processes that answer."""
    command = [sys.executable, "-m", "search_gym", "serve", str(index), "--port", "0", "--workers", str(workers)]
    command += ["--max-waiting", str(config.max_waiting), "--max-connections", "10000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                raise RuntimeError("expected a server, got none")
            port = int(line.partition("http://")[2].split()[0].rpartition(":")[2])
            yield port, answering(process.pid) if workers > 1 else [process.pid]
        finally:
            process.terminate()


def answering(pid: int) -> list[int]:
    """The worker processes of the server ``pid``."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def megabytes(pids: Sequence[int], kind: str) -> float:
    """``Rss`` or ``Pss`` of the processes together."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return round(sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 1024, 1)


def build(config: LoadConfig, folder: Path) -> Path:
    """A BM25 index of generated passages."""
    corpus, index = folder / "corpus.jsonl", folder / "bm25"
    with corpus.open("w", encoding="utf-8") as file:
        for document in documents(config.documents):
            file.write(json.dumps({"id": document.doc_id, "contents": format_contents(document)}) + "\n")
    command = ["-m", "search_gym", "index", "build", "bm25", "--corpus", str(corpus), "--output", str(index)]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return index


def measure(index: Path, config: LoadConfig) -> dict[str, Any]:
    """Every number of workers with every number of clients, then too much for each number of workers."""
    bodies, size = requests(config), {"seconds": config.seconds, "queries": config.queries}
    rows: list[dict[str, Any]] = []
    overload: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []

    def run(measurement: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        async def wait() -> dict[str, Any]:
            return await measurement

        return asyncio.run(wait())

    for workers in config.workers:
        with serving(index, workers, config) as (port, pids):
            run(closed_loop(port, bodies, 4 * workers, **size))  # so that every worker has read the index
            ours = [
                {"workers": workers, "clients": n, **run(closed_loop(port, bodies, n, **size))} for n in config.clients
            ]
            rss, pss = (megabytes(pids, kind) for kind in ("Rss", "Pss"))
            memory.append({"workers": workers, "rss_mb": rss, "pss_mb": pss})
            capacity = max(row["requests_per_second"] for row in ours)
            size_of_overload = {**size, "seconds": 3 * config.seconds}
            memory_now = functools.partial(megabytes, pids, "Rss")
            found = run(open_loop(port, bodies, 2 * capacity, memory_now, **size_of_overload))
            overload.append({"workers": workers, "capacity_per_second": capacity, **found})
            rows += ours
    return {"closed_loop": rows, "memory": memory, "twice_the_capacity": overload}


def tables(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    what = "an index given by `--index`" if options["index"] else f"{options['documents']:,} generated passages"
    lines = [
        f"`{result['command']}` on {result['machine']['cpus']} CPU cores, clients included: BM25 over {what}, "
        f"{options['queries']} queries a request, k = {options['k']}.",
        "",
        "| workers | clients | requests/s | queries/s | median latency, ms | 99th percentile, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["closed_loop"]:
        lines.append(
            f"| {row['workers']} | {row['clients']} | {row['requests_per_second']:.0f} | "
            f"{row['queries_per_second']:.0f} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} |"
        )
    lines += ["", "| workers | RSS, MB | PSS, MB |", "|---:|---:|---:|"]
    lines += [f"| {row['workers']} | {row['rss_mb']:.0f} | {row['pss_mb']:.0f} |" for row in result["memory"]]
    lines += [
        "",
        "Twice the capacity, whatever is answered:",
        "",
        "| workers | offered/s | refused with 503 | answered/s | median, 99th percentile of answers, ms "
        "| median of refusals, ms | RSS at first, last, most, MB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["twice_the_capacity"]:
        served, memory = row["served"], row["rss_mb_over_time"]
        refused = f"{row['refused']['p50_ms']:.1f}" if "p50_ms" in row["refused"] else "none"
        lines.append(
            f"| {row['workers']} | {row['offered_per_second']:.0f} | {row['refused_share']:.0%} | "
            f"{served['requests_per_second']:.0f} | {served['p50_ms']:.0f}, {served['p99_ms']:.0f} | {refused} | "
            f"{memory[0]:.0f}, {memory[-1]:.0f}, {max(memory):.0f} |"
        )
    return "\n".join(lines)


def main(config: LoadConfig, arguments: Sequence[str] = ()) -> None:
    """Measure, print, and write down with the command line's ``arguments``."""
    with tempfile.TemporaryDirectory(prefix="server-load-") as folder:
        figures = measure(config.index or build(config, Path(folder)), config)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.server_load", *arguments]),
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("fastapi", "uvicorn", "bm25s")},
        },
        "options": {name: getattr(config, name) for name in ("documents", "queries", "k", "seconds", "max_waiting")}
        | {"index": config.index is not None},
        **figures,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(tables(result))
    if config.output == LoadConfig.output and PAGE.is_file():
        write_text(PAGE, put(PAGE.read_text(encoding="utf-8"), "figures", "benchmarks.server_load", tables(result)))


if __name__ == "__main__":
    main(tyro.cli(LoadConfig, description=__doc__), sys.argv[1:])
