"""``python -m benchmarks.report DIR``: the HTML page about a study or a run, with its statistics up to date."""

from __future__ import annotations

from pathlib import Path

from benchmarks.collapse.analysis import ANALYSIS, analyse
from benchmarks.collapse.table import RUNS
from search_gym import viewer


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the page about ``folder`` and return its path; of a study whose runs have gone on, the statistics first.

    Raises:
        SearchGymError: a file is missing or malformed. MissingDependencyError: the extra "study" or "view" is missing.
    """
    runs, analysis = folder / RUNS, folder / ANALYSIS
    is_old = not analysis.is_file() or (runs.is_file() and analysis.stat().st_mtime < runs.stat().st_mtime)
    if viewer.is_study(folder) and runs.is_file() and is_old:
        analyse(folder)
    return viewer.write_page(folder, output)
