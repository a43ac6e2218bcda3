"""``python -m agents.report runs/demo``: the page about a run, and its learning curves, from the run's folder.

``search_gym.viewer`` makes them; docs/report.md shows what is on the page. `search-gym view` opens it, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from search_gym.errors import SearchGymError
from search_gym.viewer import write_page
from search_gym.viewer.run_page import LABELS

__all__ = ["LABELS", "main", "write_page"]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the report of the run folder that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.report", description="Make report.html, curves.png and curves.svg of a run."
    )
    parser.add_argument("run_dir", type=Path, help="folder of the run, such as runs/demo")
    arguments = parser.parse_args(argv)
    try:
        print(write_page(arguments.run_dir))
    except SearchGymError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
