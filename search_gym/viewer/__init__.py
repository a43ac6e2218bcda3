"""One self-contained HTML page about a training run or a study, made from the files in its folder.

The page needs neither a model nor its codec, because transcripts hold the text of every token, and loads nothing.
"""

from __future__ import annotations

from pathlib import Path

from search_gym.errors import OptionError

PAGE = "report.html"


def write_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page about ``folder``, with its charts as PNG and SVG beside it, and return the path of the page.

    ``output`` is ``report.html`` in the folder unless told otherwise.

    Raises:
        OptionError: the folder holds neither a run nor a study. SearchGymError: a file is missing or malformed.
        MissingDependencyError: matplotlib, or for a study pyarrow, is not installed.
    """
    output = folder / PAGE if output is None else output
    if is_study(folder):
        from search_gym.viewer.study_page import write_study_page as write
    elif (folder / "config.json").is_file():
        from search_gym.viewer.run_page import write_run_page as write
    else:
        raise OptionError(
            f"expected a folder with a run's config.json or a study's study.json, got {folder}; "
            "do: name a folder that training has written, such as runs/demo"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write(folder, output)
    return output


def is_study(folder: Path) -> bool:
    """Whether the folder is that of a study, which holds runs."""
    return (folder / "study.json").is_file()


def is_stale(folder: Path, page: Path) -> bool:
    """Whether the page is missing, or older than a file that it is made from."""
    if not page.is_file():
        return True
    made = page.stat().st_mtime
    sources = [path for pattern in ("*.json", "*.jsonl", "*.parquet") for path in folder.glob(pattern)]
    if is_study(folder):
        sources += folder.glob("runs/*/*/transcripts.jsonl")
    return any(path.stat().st_mtime > made for path in sources)
