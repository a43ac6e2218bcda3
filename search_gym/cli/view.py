"""Open the page about a training run or a study in the browser, and make it first where it is missing or old.

    search-gym view runs/demo                       # any run of python -m agents.*
    search-gym view runs/collapse-full              # a study of python -m benchmarks.collapse
    search-gym view runs/ppo --no-open --output ppo.html

The page is one HTML file, report.html in the folder unless --output names another: curves, alarms, scores, settings,
and every transcript that was kept, token by token. It loads nothing, so it can be sent to somebody. The curves stand
beside it as PNG and SVG.
"""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from search_gym import viewer

HELP = "open the page about a training run or a study"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the run or study, such as runs/demo")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes (default: FOLDER/report.html)")
    parser.add_argument("--no-open", action="store_true", help="make the page and do not open it")
    parser.add_argument("--force", action="store_true", help="make the page again even if it is not old")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Make the page if need be, say where it is and how large, and open it."""
    page = args.output or args.folder / viewer.PAGE
    if args.force or viewer.is_stale(args.folder, page):
        viewer.write_page(args.folder, page)
    print(f"{page} ({size(page)})")
    if not args.no_open and not webbrowser.open(page.resolve().as_uri()):
        print("no browser was found; open the file in one")


def size(path: Path) -> str:
    """The size of a file in kB or MB."""
    kilobytes = path.stat().st_size / 1000
    return f"{kilobytes:,.0f} kB" if kilobytes < 1000 else f"{kilobytes / 1000:.1f} MB"
