"""Reading questions in FlashRAG's layout from JSON lines, parquet, and from a server while it sends them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from search_gym._jsonl import Row, parse_row, rows
from search_gym.errors import QuestionError
from search_gym.plugins import require
from search_gym.questions import Question

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_ROWS_A_BATCH = 1000
_SECONDS_TO_ANSWER = 30


def read_question(row: Row) -> Question:
    """The question of a row; ``metadata.type`` (FlashRAG's word) is repeated as ``metadata["kind"]``.

    Raises:
        QuestionError: a field is missing or of another form.
    """
    answers = row.value("golden_answers", list)
    if not answers or not all(isinstance(answer, str) and answer.strip() for answer in answers):
        raise row.error("golden_answers", "one or more strings that are not blank", answers)
    metadata = dict(row.value("metadata", dict, default={}))
    if not isinstance(metadata.get("split", ""), str):
        raise row.error("metadata.split", "a string", metadata["split"])
    supporting = metadata.get("supporting_ids", [])
    if not isinstance(supporting, list) or not all(isinstance(doc_id, str) for doc_id in supporting):
        raise row.error("metadata.supporting_ids", "a list of strings", supporting)
    if "type" in metadata:
        metadata.setdefault("kind", metadata["type"])
    return Question(row.string("id"), row.string("question"), tuple(answers), metadata)


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of a file with one of the `SUFFIXES`, in its order, read as they are asked for.

    Raises:
        QuestionError: unreadable, malformed, or an id twice.
    """
    return _with_new_ids(_parquet_rows(path)) if path.suffix == ".parquet" else rows(path, QuestionError)


def url_rows(url: str) -> Iterator[Row]:
    """The rows of a JSON-lines file on a server, while it sends them.

    Raises:
        QuestionError: no such file, no connection, malformed, or an id twice.
    """
    return _with_new_ids(_url_rows(url))


def _url_rows(url: str) -> Iterator[Row]:
    try:
        with urlopen(Request(url, headers={"Accept-Encoding": "identity"}), timeout=_SECONDS_TO_ANSWER) as response:
            for number, line in enumerate(response, 1):
                if line.strip():
                    yield parse_row(url, number, line, QuestionError)
    except (OSError, http.client.HTTPException) as error:
        raise QuestionError(
            f"{url}: expected the file from its server, got {error}; "
            "do: try again, or download it where that works and pass its folder as data_dir"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    arrow = require("pyarrow", extra="data")
    parquet = require("pyarrow.parquet", extra="data")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_A_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(path, number, _without_nulls(values), QuestionError, unit="row")
    except (OSError, arrow.ArrowException) as error:
        raise QuestionError(f"{path}: expected a readable parquet file, got {error}; do: check the path") from error
    if not number:
        raise QuestionError(f"{path}: expected at least one row, got an empty file; do: check how it was written")


def _without_nulls(value: Any) -> Any:
    """``value`` without the fields that only other rows of the table have."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _with_new_ids(items: Iterator[Row]) -> Iterator[Row]:
    first: dict[str, int] = {}
    for row in items:
        row_id = row.string("id")
        if first.setdefault(row_id, row.line) != row.line:
            raise row.error("id", f"a new id ({row.unit} {first[row_id]} has this one)", row_id)
        yield row
