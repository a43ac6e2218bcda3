"""Write the results on the pages of docs/algorithms from what `benchmarks.seeds` measured.

    python -m benchmarks.seeds && python -m benchmarks.algorithm_pages

Each page has one block between two markers, and nothing else of it is touched. A page whose algorithm
``benchmarks/results/seeds.json`` does not hold says that it was not measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents import algorithms
from search_gym.errors import SearchGymError

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs/algorithms"
SEEDS = ROOT / "benchmarks/results/seeds.json"
BEGIN = "<!-- results:begin (made by `python -m benchmarks.algorithm_pages`; do not edit) -->"
END = "<!-- results:end -->"


class PageError(SearchGymError, ValueError):
    """A page has no place for results, or more than one."""


def results_block(seeds: Mapping[str, Any], algorithm: str) -> str:
    """The results of ``algorithm`` as Markdown: a row for each seed, and the command that made them."""
    results = [result for result in seeds["results"] if result.get("algorithm") == algorithm]
    if not results:
        return f"Not measured: `benchmarks/results/seeds.json` holds no run of `{algorithm}`."
    kinds = list(results[0]["em_after"])
    goal = seeds["goal"]
    reached = sum(all(result["em_after"][kind] >= goal for kind in kinds) for result in results)
    names = [*(f"{kind} before" for kind in kinds), *(f"{kind} after" for kind in kinds), "searches"]
    lines = [
        f"Exact match on held-out worlds, greedy decoding, preset `{seeds['preset']}`: {reached} of {len(results)} "
        f"seeds reach {goal:.2f} on every kind of question.",
        "",
        f"| seed | {' | '.join(names)} | seconds of training | of these on a CPU |",
        "|" + "---:|" * (len(names) + 3),
    ]
    for result in sorted(results, key=lambda result: result["seed"]):
        em = [f"{result[when][kind]:.2f}" for when in ("em_before", "em_after") for kind in kinds]
        row = [str(result["seed"]), *em, f"{result['searches']['all']:.2f}"]
        row += [f"{result['train_seconds']:.0f}", f"{result['train_cpu_seconds']:.0f}"]
        lines.append(f"| {' | '.join(row)} |")
    machine = f"{seeds['machine']['cpus']} CPU cores ({seeds['machine']['architecture']}), torch {seeds['torch']}"
    return "\n".join([*lines, "", f"Made by `{seeds['command']}` on {machine}."])


def with_results(page: str, block: str) -> str:
    """``page`` with ``block`` between its markers.

    Raises:
        PageError: the page does not have each marker once, the first before the second.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(END) < page.index(BEGIN):
        raise PageError(
            f"expected {BEGIN!r} and then {END!r}, each once, got {page.count(BEGIN)} and {page.count(END)} of them; "
            "do: put the two markers where the results belong"
        )
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.partition(END)[2]}"


def main(pages: Path = PAGES, seeds: Path = SEEDS) -> None:
    """Write the block of every algorithm's page.

    Raises:
        PageError: a page is missing, or has no place for results. Then no page is changed.
    """
    measured = json.loads(seeds.read_text(encoding="utf-8"))
    written = {}
    for name in algorithms.names():
        page = pages / f"{name}.md"
        if not page.is_file():
            raise PageError(f"expected a page of {name!r} at {page}, got none; do: write it like its neighbours")
        written[page] = with_results(page.read_text(encoding="utf-8"), results_block(measured, name))
    for page, text in written.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(f"usage: python -m benchmarks.algorithm_pages\n\n{__doc__}")
    try:
        main()
    except SearchGymError as error:
        sys.exit(f"error: {error}")
