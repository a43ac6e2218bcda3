"""What follows the runs: tables, statistics, the report. The last two are other modules, which need not be there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any


def analyse(folder: Path) -> Any:
    """Write ``analysis.json``; None where the statistics are not there."""
    return _call("benchmarks.collapse.analysis", "analyse", folder)


def report(folder: Path) -> Any:
    """Write the HTML report and return its path; None where there is no report."""
    return _call("benchmarks.report", "write_report", folder)


def _call(module: str, function: str, folder: Path) -> Any:
    if importlib.util.find_spec(module) is None:
        return None
    found: Callable[[Path], Any] | None = getattr(importlib.import_module(module), function, None)
    return found(folder) if found is not None else None
