"""Write the results table of README.md from the demo's summary, and copy its picture.

    make demo && python -m benchmarks.readme runs/demo

The summary is kept in ``benchmarks/results/demo.json``, so that a test can tell whether README.md
still says what the summary says.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.report import LABELS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SUMMARY = ROOT / "benchmarks/results/demo.json"
PICTURE = ROOT / "docs/images/demo.png"
BEGIN, END = "<!-- results:begin (made by `python -m benchmarks.readme`; do not edit) -->", "<!-- results:end -->"
SEEDS = ROOT / "benchmarks/results/seeds.json"
LONG = ROOT / "benchmarks/results/seeds_long.json"


def table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table, with lines that say where it comes from and how often it comes out so."""
    means = {"before": summary["em_before"], "after": summary["em_after"], **summary["baselines"]}
    intervals = summary["intervals"]
    bounds = {"before": intervals["em_before"], "after": intervals["em_after"], **intervals["baselines"]}
    kinds = list(summary["em_after"])
    lines = [f"| policy | {' | '.join(kinds)} |", "|---|" + "---:|" * len(kinds)]
    for row in (name for name in LABELS if name in means):
        name = f"**{LABELS[row]}**" if row == "after" else LABELS[row]
        cells = (f"{means[row][k]:.2f} [{bounds[row][k][0]:.2f}, {bounds[row][k][1]:.2f}]" for k in kinds)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    per_kind = summary["num_questions"] // len(kinds)
    lines += [
        "",
        f"`make demo`, seed {summary['seed']}, {per_kind} questions of each kind, {summary['train_seconds']:.0f} s of "
        "training on one of 2 CPU cores while the other trains the agents to compare with.",
        "",
        *(line for path in (SEEDS, LONG) for line in seeds_lines(json.loads(path.read_text(encoding="utf-8")))),
    ]
    return "\n".join(lines).rstrip()


def seeds_lines(seeds: Mapping[str, Any]) -> list[str]:
    """What `benchmarks.seeds` found, as items of a list: the command, and what each algorithm reached."""
    lines = [f"`{seeds['command']}`: held-out exact match of at least {seeds['goal']:.2f} on every kind of question"]
    for name, reached in seeds["seeds_that_reach_the_goal_on_every_kind"].items():
        results = [result for result in seeds["results"] if result["algorithm"] == name]
        lowest = {kind: min(result["em_after"][kind] for result in results) for kind in results[0]["em_after"]}
        cpu = [result["train_cpu_seconds"] for result in results]
        shown = ", ".join(f"{kind} {em:.2f}" for kind, em in lowest.items())
        lines.append(
            f"* {name}: {reached} of {len(results)} seeds; lowest {shown}; "
            f"{min(cpu):.0f} to {max(cpu):.0f} s of one core"
        )
    return [*lines, ""]


def with_table(readme: str, summary: Mapping[str, Any]) -> str:
    """``readme`` with the table of ``summary`` between its markers."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(summary)}\n{END}{after}"


def main(run_dir: Path) -> None:
    """Take over what ``run_dir`` holds."""
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run_dir / "summary.json", SUMMARY)
    shutil.copyfile(run_dir / "curves.png", PICTURE)
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    README.write_text(with_table(README.read_text(encoding="utf-8"), summary), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: python -m benchmarks.readme RUN_DIR\n\n{__doc__}")
    main(Path(sys.argv[1]))
