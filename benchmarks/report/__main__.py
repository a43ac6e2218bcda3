"""The page about a study or a run: one HTML file that loads nothing, and its charts as PNG and SVG.

    python -m benchmarks.report runs/collapse-quick
    python -m benchmarks.report runs/demo --output demo.html

docs/report.md shows what is on it. `search-gym view` opens it in the browser.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import write_report
from search_gym.cli.view import size
from search_gym.errors import SearchGymError


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the study, or of a run")
    parser.add_argument("--output", type=Path, help="where the page goes (default: report.html in the folder)")
    options = parser.parse_args(args)
    try:
        page = write_report(options.folder, options.output)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    print(f"{page} ({size(page)})")


if __name__ == "__main__":
    main()
