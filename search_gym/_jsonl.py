"""JSON lines: objects with their place in the file, so that an error can name it."""

from __future__ import annotations

import gzip
import json
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from search_gym.errors import CorpusError, QuestionError

FileError = type[QuestionError] | type[CorpusError]


class Row:
    """One JSON object and where it stands, so that an error can say so. ``unit`` is "row" in files without lines."""

    def __init__(
        self, path: Path | str, line: int, values: dict[str, Any], error_class: FileError, *, unit: str = "line"
    ) -> None:
        self.path = path
        self.line = line
        self.unit = unit
        self._values = values
        self._error_class = error_class

    def error(self, field: str, expected: str, got: object) -> QuestionError | CorpusError:
        where = f"{self.path}, {self.unit} {self.line}, field {field!r}"
        return self._error_class(f"{where}: expected {expected}, got {short(got)}; do: correct the {self.unit}")

    def value(self, field: str, kind: type, default: Any = None) -> Any:
        value = self._values.get(field, default)
        if not isinstance(value, kind):
            names = {list: "a list", dict: "an object", str: "a string"}
            raise self.error(field, names[kind], value if field in self._values else "no such field")
        return value

    def string(self, field: str) -> str:
        text = self.value(field, str)
        if not text.strip():
            raise self.error(field, "a string that is not blank", text)
        return text


def rows(path: Path, error_class: FileError) -> Iterator[Row]:
    """The objects of a file, one per line, read as they are asked for; blank lines are skipped, ``.gz`` is unpacked.

    Raises:
        QuestionError | CorpusError: unreadable, empty, not UTF-8, not JSON objects, or (at the end) an id twice.
    """
    # A set of 21 million ids would take gigabytes; their hashes take eight bytes each.
    hashes = array("q")
    for number, line in _lines(path, error_class):
        row = parse_row(path, number, line, error_class)
        hashes.append(hash(row.string("id")))
        yield row
    if not hashes:
        raise error_class(f"{path}: expected at least one line, got an empty file; do: check how it was written")
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if repeated:
        first_line: dict[str, int] = {}
        for number, line in _lines(path, error_class):
            row = parse_row(path, number, line, error_class)
            row_id = row.string("id")
            if hash(row_id) in repeated and first_line.setdefault(row_id, number) != number:
                raise row.error("id", f"a new id (line {first_line[row_id]} has this one)", row_id)


def _lines(path: Path, error_class: FileError) -> Iterator[tuple[int, bytes]]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise error_class(f"{path}: expected a readable file, got {reason}; do: check the path") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def parse_row(path: Path | str, number: int, line: bytes, error_class: FileError) -> Row:
    """The object in a line of a file.

    Raises:
        QuestionError | CorpusError: not UTF-8, or not a JSON object.
    """
    where = f"{path}, line {number}"
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise error_class(f"{where}: expected UTF-8, got {error}; do: convert the file") from error
    except (ValueError, RecursionError) as error:
        raise error_class(f"{where}: expected a JSON object, got {short(line)}: {error}; do: correct it") from error
    if not isinstance(values, dict):
        raise error_class(f"{where}: expected a JSON object, got {short(values)}; do: correct the line")
    return Row(path, number, values, error_class)


def short(value: object) -> str:
    """``value`` in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
