"""The tables in ``docs/scale.md``, made of the figures in ``benchmarks/results/retrievers.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.pages import put

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scale.md"
WIKI_18 = 21_015_324
DIMENSIONS = 768  # of e5-base-v2, the encoder of Search-R1
MEASURED_DIMENSIONS = 128
NPROBE = 32
OPTIONS = {"real": " --data DATA", "encoding": " --model MODEL"}
"""What the command needs beside the defaults to make a table."""
Cells = Mapping[str, Mapping[str, Any]]


def write_page(results: Path, page: Path = PAGE) -> None:
    """Remake the tables of ``page`` that stand between markers."""
    cells = json.loads(results.read_text(encoding="utf-8"))["cells"]
    text = page.read_text(encoding="utf-8")
    for name, table in tables(cells).items():
        text = with_table(text, name, table)
    page.write_text(text, encoding="utf-8")


def with_table(page: str, name: str, table: str) -> str:
    """``page`` with ``table`` between the markers called ``name``."""
    return put(page, name, f"benchmarks.retrievers{OPTIONS.get(name, '')}", table)


def tables(cells: Cells) -> dict[str, str]:
    """Markdown tables by the name of their markers."""
    return {
        "indexes": index_table(cells),
        "speed": speed_table(cells),
        "real": real_table(cells),
        "wiki18": wiki_table(cells),
        "encoding": encoding_table(cells),
    }


def _pick(cells: Cells, measure: str, is_real: bool = False) -> list[Mapping[str, Any]]:
    rows = [cell for cell in cells.values() if cell["measure"] == measure]
    rows = [cell for cell in rows if _is_size(cell["corpus"]) != is_real]
    return rows if is_real else sorted(rows, key=lambda cell: (int(cell["corpus"]), _order(cell["kind"])))


_KINDS = ("bm25", "Flat", "HNSW32")


def _order(kind: str) -> tuple[int, str]:
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS)), kind


def _is_size(corpus: str) -> bool:
    return corpus.replace("_", "").isdigit()


def _table(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", "---", *("---:" for _ in header[2:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *rows])


def _corpus(cell: Mapping[str, Any]) -> str:
    return cell["corpus"].replace("_", ",") if _is_size(cell["corpus"]) else cell["corpus"]


def _other(cells: Cells, cell: Mapping[str, Any], measure: str) -> Mapping[str, Any]:
    return cells[f"{cell['corpus']} / {cell['kind']} / {measure}"]


def index_table(cells: Cells) -> str:
    """Cost and quality of every index: built, on disk, in memory, and what it finds of exact search."""
    header = [
        "documents",
        "index",
        "build, CPU s",
        "build, peak MB",
        "on disk, MB",
        "serving, peak MB",
        "of it own, MB",
    ]
    header += [f"recall@{k}" for k in (1, 3, 10)]
    rows = []
    for serve in _pick(cells, "serve"):
        build = _other(cells, serve, "build")
        figures = [build["cpu_seconds"], build["peak_rss_mb"], build["size_mb"], serve["peak_rss_mb"], serve["own_mb"]]
        found = [f"{share:.3f}" for share in serve["recall"].values()]
        rows.append([_corpus(serve), serve["kind"], *(f"{figure:,.0f}" for figure in figures), *found])
    return _table(header, rows)


def speed_table(cells: Cells) -> str:
    """Queries per second and the ratio of our time to that of the library called directly, for each size of batch."""
    header = ["documents", "index", *(f"queries/s, batch {b}" for b in (1, 64, 512))]
    header += [f"our time / library's, batch {b}" for b in (1, 64, 512)]
    rows = []
    for compare in _pick(cells, "compare"):
        rates = [f"{rate:,.0f}" for rate in _other(cells, compare, "serve")["queries_per_second"].values()]
        ratios = [f"{ratio:.2f}" for ratio in compare["time_ours_over_direct"].values()]
        rows.append([_corpus(compare), compare["kind"], *rates, *ratios])
    return _table(header, rows)


def real_table(cells: Cells) -> str:
    """BM25 on real questions: how much of what supports the answer is found."""
    header = ["corpus", "documents", *(f"gold recall@{k}" for k in (1, 3, 10)), "queries/s, batch 512"]
    header += ["our time / library's, batch 512"]
    rows = []
    for serve in _pick(cells, "serve", is_real=True):
        number = cells[f"{serve['corpus']} / corpus"]["num_documents"]
        gold = [f"{share:.3f}" for share in serve["gold_recall"].values()]
        ratio = _other(cells, serve, "compare")["time_ours_over_direct"]["512"]
        rows.append(
            [serve["corpus"], f"{number:,}", *gold, f"{serve['queries_per_second']['512']:,.0f}", f"{ratio:.2f}"]
        )
    return _table(header, rows)


def wiki_table(cells: Cells) -> str:
    """What wiki-18 takes, scaled from the largest corpus that each index was measured on."""
    largest: dict[str, Mapping[str, Any]] = {}
    for serve in _pick(cells, "serve"):
        largest["IVF" if serve["kind"].startswith("IVF") else serve["kind"]] = serve
    header = ["index", "scaled from", "on disk, GB", "build, CPU hours of one core", "queries/s of one core, batch 512"]
    rows = []
    for kind, serve in largest.items():
        build, size = _other(cells, serve, "build"), int(serve["corpus"])
        disk, hours, rate = _scaled(kind, serve, build, size)
        rows.append([serve["kind"], _corpus(serve), f"{disk:,.1f}", f"{hours:,.1f}", f"{rate:,.1f}"])
    return _table(header, rows)


def encoding_table(cells: Cells) -> str:
    """How fast a real encoder is, and how long one core takes for wiki-18."""
    header = ["encoder", "dimensions", "passages/s of one core", "queries/s of one core", "wiki-18, core days"]
    rows = []
    for cell in _pick(cells, "encoding"):
        speed, queries = cell["passages_per_second"], cell["queries_per_second"]
        days = WIKI_18 / speed / 86_400
        rows.append([cell["kind"], str(cell["dimension"]), f"{speed:,.1f}", f"{queries:,.0f}", f"{days:,.1f}"])
    return _table(header, rows)


def _scaled(kind: str, serve: Mapping[str, Any], build: Mapping[str, Any], size: int) -> tuple[float, float, float]:
    """Gigabytes, CPU hours and queries per second for wiki-18; ``docs/scale.md`` says why."""
    more, wider = WIKI_18 / size, DIMENSIONS / MEASURED_DIMENSIONS
    megabytes, hours, rate = build["size_mb"], build["cpu_seconds"] / 3600, serve["queries_per_second"]["512"]
    vectors = size * MEASURED_DIMENSIONS * 4 / 1e6
    if kind == "bm25":
        return megabytes * more / 1e3, hours * more, rate / more
    if kind == "Flat":
        return vectors * wider * more / 1e3, hours * more, rate / more / wider
    if kind == "IVF":
        lists = int(serve["kind"][3:].partition(",")[0])
        wanted = 2 ** ((WIKI_18.bit_length() - 1) // 2)
        scanned = (WIKI_18 * NPROBE / wanted) / (size * min(1.0, NPROBE / lists))
        return megabytes * more / 1e3, hours * more, rate / scanned
    growth = math.log(WIKI_18) / math.log(size)
    graph = megabytes - vectors
    return (vectors * wider + graph) * more / 1e3, hours * more * growth * wider, rate / growth / wider


if __name__ == "__main__":
    write_page(ROOT / "benchmarks/results/retrievers.json")
