"""The tables in ``docs/scale.md``, made of the figures in ``benchmarks/results/retrievers.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/scale.md"
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
    begin = f"<!-- {name}:begin (made by `python -m benchmarks.retrievers`; do not edit) -->"
    end = f"<!-- {name}:end -->"
    before, found, rest = page.partition(begin)
    if not found:
        raise ValueError(f"expected the marker {begin!r} in the page, got none; do: put it where the table belongs")
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"


def tables(cells: Cells) -> dict[str, str]:
    """Markdown tables by the name of their markers."""
    return {"indexes": index_table(cells), "speed": speed_table(cells), "real": real_table(cells)}


def _pick(cells: Cells, measure: str, is_real: bool = False) -> list[Mapping[str, Any]]:
    rows = [cell for cell in cells.values() if cell["measure"] == measure]
    return [cell for cell in rows if _is_size(cell["corpus"]) != is_real]


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


if __name__ == "__main__":
    write_page(ROOT / "benchmarks/results/retrievers.json")
