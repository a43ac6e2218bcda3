"""Questions in an Arrow file: checked once, when it is made, and from then on read from disk as they are asked for."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from search_gym._jsonl import Row
from search_gym._progress import progress
from search_gym.errors import QuestionError
from search_gym.plugins import require
from search_gym.questions import Question
from search_gym.questions._reading import file_rows, read_question

_VERSION = 1
_ROWS_A_BATCH = 1000
# Metadata is JSON, because the rows of one file need not have the same fields, nor fields of one type.
_COLUMNS = ("id", "question", "golden_answers", "metadata", "split")


class QuestionTable:
    """The questions of an Arrow file, memory-mapped; a copy in another process opens the file anew."""

    def __init__(self, path: Path) -> None:
        """Raises MissingDependencyError: no datasets library."""
        self.path = path
        table = require("datasets", extra="data").Dataset.from_file(str(path)).data
        self._columns = [table.column(name) for name in _COLUMNS[:4]]
        self._splits = table.column("split")

    def __len__(self) -> int:
        return len(self._splits)

    def __call__(self, index: int) -> Question:
        """The question in row ``index``."""
        question_id, text, answers, metadata = (column[index].as_py() for column in self._columns)
        return Question(question_id, text, tuple(answers), json.loads(metadata))

    def splits(self) -> list[str | None]:
        """The split that each row names, if it does."""
        return self._splits.to_pylist()

    def __reduce__(self) -> tuple[type[QuestionTable], tuple[Path]]:
        return QuestionTable, (self.path,)


def open_table(source: Path) -> QuestionTable:
    """The questions of the file ``source``, from an Arrow file that is kept in the cache of the datasets library.

    It is made when there is none for the file as it is now (path, size and time of its last change).

    Raises:
        QuestionError: the file is unreadable or malformed, or the cache cannot be written. MissingDependencyError: no
        datasets library.
    """
    cache = Path(require("datasets", extra="data").config.HF_DATASETS_CACHE) / "search_gym"
    try:
        about = source.stat()
        key = json.dumps([_VERSION, str(source.resolve()), about.st_size, about.st_mtime_ns])
    except OSError as error:
        raise QuestionError(f"{source}: expected a readable file, got {error.strerror}; do: check the path") from error
    target = cache / f"{source.stem}-{blake2b(key.encode(), digest_size=8).hexdigest()}.arrow"
    if not target.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                new = Path(folder) / target.name
                _write(progress(file_rows(source), f"reading {source.name}", unit="question"), new)
                new.replace(target)  # at once, so that processes that start together cannot see a part
        except OSError as error:
            raise QuestionError(
                f"{cache}: expected a folder to keep the questions in, got {error}; "
                "do: set HF_DATASETS_CACHE to another, or load with streaming=True"
            ) from error
    return QuestionTable(target)


def _write(items: Iterable[Row], path: Path) -> None:
    arrow = require("pyarrow", extra="data")
    types = [arrow.string(), arrow.string(), arrow.list_(arrow.string()), arrow.string(), arrow.string()]
    schema = arrow.schema(list(zip(_COLUMNS, types, strict=True)))
    waiting = (_values(row) for row in items)
    with arrow.OSFile(str(path), "wb") as file, arrow.ipc.new_stream(file, schema) as writer:
        while batch := list(islice(waiting, _ROWS_A_BATCH)):
            columns = [list(column) for column in zip(*batch, strict=True)]
            writer.write_batch(arrow.record_batch(columns, schema=schema))


def _values(row: Row) -> tuple[str, str, list[str], str, str | None]:
    question = read_question(row)
    split = question.metadata.get("split")
    texts = (question.question_id, question.text, *question.answers, split or "")
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        raise row.error("question", "text that UTF-8 can hold", error.reason) from error
    try:
        metadata = json.dumps(question.metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise row.error("metadata", "values that JSON can hold", error) from error
    return question.question_id, question.text, list(question.answers), metadata, split
