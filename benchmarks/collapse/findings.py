"""docs/findings.md from the folder of a study, finished or not.

    python -m benchmarks.collapse.findings runs/collapse-full --results benchmarks/results/collapse
    python -m benchmarks.collapse.findings benchmarks/results/collapse

Analyses the study's tables (``analysis.json``) and writes the page and its plots. ``--results`` keeps all that the page
is made from in another folder too. Nothing on the page is written by hand.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.runlog import write_json, write_text
from benchmarks.collapse.analysis import ANALYSIS, analyse
from benchmarks.collapse.findings_page import page
from benchmarks.collapse.findings_plots import draw_curves, draw_survival
from benchmarks.collapse.folder import STUDY
from benchmarks.collapse.table import RUNS, TABLE
from search_gym.errors import OptionError, SearchGymError

OUTPUT = Path("docs/findings.md")


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collapse.findings",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder of the study")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the page to write; plots go to images/ beside it")
    parser.add_argument(
        "--keep-analysis",
        action="store_true",
        help="take analysis.json as it is in the folder, and do not look at tables",
    )
    parser.add_argument(
        "--results", type=Path, help="folder that receives the study's description, tables and analysis"
    )
    options = parser.parse_args(args)
    try:
        if not options.keep_analysis:
            analyse(options.folder)
        if options.results is not None:
            keep(options.folder, options.results)
        write(read(options.folder), options.output)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    print(options.output)


def read(folder: Path) -> dict[str, Any]:
    """What ``analysis.json`` in the folder holds.

    Raises:
        OptionError: there is none.
    """
    path = folder / ANALYSIS
    if not path.is_file():
        raise OptionError(f"expected the analysis of a study in {path}, got no file; do: leave out --keep-analysis")
    return json.loads(path.read_text(encoding="utf-8"))


def keep(folder: Path, results: Path) -> None:
    """Copy what the page is made from; the command of the study without the folder that it happened to run in."""
    results.mkdir(parents=True, exist_ok=True)
    for name in (RUNS, TABLE, ANALYSIS):
        shutil.copyfile(folder / name, results / name)
    study = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    words = shlex.split(study["command"])
    if "--run-dir" in words:
        at = words.index("--run-dir")
        words[at : at + 2] = []
    write_json(results / STUDY, {**study, "command": shlex.join(words)})


def write(found: dict[str, Any], output: Path) -> None:
    """Write the page and its plots."""
    images = output.parent / "images"
    for name, figure in (("collapse_curves", draw_curves(found)), ("collapse_survival", draw_survival(found))):
        if figure is not None:
            images.mkdir(parents=True, exist_ok=True)
            figure.savefig(images / f"{name}.png", dpi=120)
    write_text(output, page(found))


if __name__ == "__main__":
    main()
