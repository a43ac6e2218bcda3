"""The question sets of FlashRAG (Jin et al. 2024, arXiv 2405.13576): from the hub, or from files in its layout.

A set is a folder with a file for each split, ``nq/train.jsonl``, or one file for all, ``nq.jsonl``, whose rows name
theirs in ``metadata.split``. ``.jsonl.gz`` and ``.parquet`` files are read, too.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from search_gym._jsonl import Row
from search_gym.corpus import load_corpus
from search_gym.errors import OptionError, QuestionError
from search_gym.plugins import require
from search_gym.questions import LazyQuestions, Question, QuestionSet
from search_gym.questions._reading import SUFFIXES, file_rows, read_question, url_rows
from search_gym.questions._table import open_table

HUB = "RUC-NLPIR/FlashRAG_datasets"


class AbsentError(QuestionError):
    """There is no file of a split, or no question of it in the file of all splits."""


class LocalFile(NamedTuple):
    """A file with the questions of a split, or of all splits."""

    path: Path
    has_all_splits: bool


@dataclass(frozen=True)
class FlashRAGSet:
    """A question set on the hub. ``sizes`` counts the questions of each split there.

    ``test_split`` is the one that Search-R1 tests on and that ``split="test"`` so names: "dev" where the answers of the
    test questions are not public.
    """

    name: str
    title: str
    sizes: Mapping[str, int]
    licence: str
    citation: str
    test_split: str = "test"

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that ``split`` may have."""
        return tuple(dict.fromkeys((*self.sizes, "test")))

    def real_split(self, split: str) -> str:
        """The split on the hub that ``split`` names.

        Raises:
            OptionError: there is none.
        """
        if split == "test":
            return self.test_split
        if split not in self.sizes:
            raise OptionError(f"expected a split of {self.name} among {list(self.splits)}, got {split!r}; do: pick one")
        return split

    def load(
        self,
        split: str,
        *,
        data_dir: str | Path | None = None,
        corpus: str | Path | None = None,
        limit: int | None = None,
        revision: str | None = None,
        streaming: bool = False,
    ) -> QuestionSet:
        """The first ``limit`` questions of ``split``, in the order of the file, with the passages of ``corpus``.

        ``data_dir`` is a folder with files in the hub's layout; without it the file comes from the hub (at
        ``revision``), or from the hub's cache where it was downloaded before. It is checked and converted once, and
        read from disk as questions are asked for. ``streaming=True`` reads no more of it than ``limit`` needs, holds
        the questions in memory, and keeps nothing on disk.

        Raises:
            QuestionError: no such file, a malformed one, or none of its questions belongs to ``split``. OptionError: no
            such split, or a ``limit`` below 1. CorpusError: the corpus is malformed. MissingDependencyError: no
            datasets library.
        """
        if limit is not None and limit < 1:
            raise OptionError(f"expected a limit of at least 1, got {limit}; do: leave it out to take all questions")
        split = self.real_split(split)
        if streaming and data_dir is None:
            url = self._url(split, revision)
            return _with_corpus(_read(url_rows(url), None, limit), corpus, url, split)
        file = self.find(split, data_dir) if data_dir is not None else LocalFile(self._from_hub(split, revision), False)
        wanted = split if file.has_all_splits else None
        if streaming:
            return _with_corpus(_read(file_rows(file.path), wanted, limit), corpus, file.path, split)
        table = open_table(file.path)
        rows: Sequence[int] = range(len(table))
        if wanted is not None:
            rows = array("q", (i for i, named in enumerate(table.splits()) if named in (None, wanted)))
        return _with_corpus(LazyQuestions(table, rows)[:limit], corpus, file.path, split)

    def find(self, split: str, data_dir: str | Path) -> LocalFile:
        """The file of ``split`` in the folder ``data_dir``.

        Raises:
            QuestionError: there is none. OptionError: no such split.
        """
        split = self.real_split(split)
        places = [LocalFile(Path(data_dir, self.name, split + suffix), False) for suffix in SUFFIXES]
        places += [LocalFile(Path(data_dir, self.name + suffix), True) for suffix in SUFFIXES]
        for place in places:
            if place.path.is_file():
                return place
        raise AbsentError(
            f"{data_dir}: expected {self.name}/{split}.jsonl or {self.name}.jsonl (or .jsonl.gz, .parquet) in it, got "
            f"none; do: {self.download_command(split, data_dir)}"
        )

    def download_command(self, split: str, data_dir: str | Path) -> str:
        """The command that brings the file of ``split`` into the folder ``data_dir``, given a network."""
        return f"hf download {HUB} {self._file(split)} --repo-type dataset --local-dir {data_dir}"

    def is_cached(self, split: str, revision: str | None = None) -> bool:
        """Whether the file of ``split`` was downloaded before; never, where the hub's library is missing."""
        return find_spec("huggingface_hub") is not None and self._cached(split, revision) is not None

    def _file(self, split: str) -> str:
        return f"{self.name}/{self.real_split(split)}.jsonl"

    def _cached(self, split: str, revision: str | None) -> Path | None:
        hub = require("huggingface_hub", extra="data")
        found = hub.try_to_load_from_cache(HUB, self._file(split), repo_type="dataset", revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _from_hub(self, split: str, revision: str | None) -> Path:
        """The downloaded file; what was downloaded once is taken without asking the hub whether it has changed."""
        found = self._cached(split, revision)
        if found is not None:
            return found
        hub = require("huggingface_hub", extra="data")
        try:
            return Path(hub.hf_hub_download(HUB, self._file(split), repo_type="dataset", revision=revision))
        except Exception as error:  # the boundary to the hub's client and to whatever it speaks HTTP with
            raise self._unreachable(split, error) from error

    def _url(self, split: str, revision: str | None) -> str:
        hub = require("huggingface_hub", extra="data")
        if require("huggingface_hub.constants", extra="data").HF_HUB_OFFLINE:
            raise self._unreachable(split, "HF_HUB_OFFLINE is set")
        return hub.hf_hub_url(HUB, self._file(split), repo_type="dataset", revision=revision)

    def _unreachable(self, split: str, reason: object) -> AbsentError:
        command = self.download_command(split, "DATA")
        return AbsentError(
            f"{self.name}: expected {self._file(split)} from the hub's {HUB} or in its cache, got: "
            f"{str(reason).strip().splitlines()[0].rstrip('.')}; do: where there is a network, `{command}`, then bring "
            f"the folder DATA here and name it: '{self.name}:DATA' or data_dir='DATA'"
        )


@dataclass(frozen=True)
class Mixture:
    """Several sets one after the other. Ids begin with the set's name, as those of the sets are not unique together."""

    name: str
    title: str
    parts: tuple[FlashRAGSet, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """How many questions each split has: the parts' train splits, and what they are tested on."""
        return {split: sum(part.sizes[part.real_split(split)] for part in self.parts) for split in ("train", "test")}

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that ``split`` may have."""
        return tuple(self.sizes)

    def load(
        self,
        split: str,
        *,
        data_dir: str | Path | None = None,
        corpus: str | Path | None = None,
        limit: int | None = None,
        revision: str | None = None,
        streaming: bool = False,
    ) -> QuestionSet:
        """The questions of all parts; ``metadata["data_source"]`` names the part. ``limit`` holds for each part.

        See `FlashRAGSet.load` for the options and what is raised.
        """
        if split not in self.splits:
            raise OptionError(f"expected a split of {self.name} among {list(self.splits)}, got {split!r}; do: pick one")
        loaded = [
            part.load(split, data_dir=data_dir, limit=limit, revision=revision, streaming=streaming)
            for part in self.parts
        ]
        joined = _Joined([part.name for part in self.parts], loaded)
        return QuestionSet(LazyQuestions(joined, range(len(joined))), load_corpus(corpus) if corpus is not None else ())


class _Joined:
    """Question ``index`` of several sequences one after the other."""

    def __init__(self, names: Sequence[str], parts: Sequence[Sequence[Question]]) -> None:
        self._parts = list(zip(names, parts, strict=True))

    def __len__(self) -> int:
        return sum(len(questions) for _, questions in self._parts)

    def __call__(self, index: int) -> Question:
        for name, questions in self._parts:
            if index < len(questions):
                question = questions[index]
                metadata = {**question.metadata, "data_source": name}
                return replace(question, question_id=f"{name}/{question.question_id}", metadata=metadata)
            index -= len(questions)
        raise IndexError(f"expected an index below {len(self)}")


def _with_corpus(
    questions: Sequence[Question], corpus: str | Path | None, source: Path | str, split: str
) -> QuestionSet:
    if not questions:
        raise AbsentError(
            f"{source}: expected questions of the split {split!r}, got none; do: look at their metadata.split"
        )
    return QuestionSet(questions, load_corpus(corpus) if corpus is not None else ())


def _read(items: Iterable[Row], split: str | None, limit: int | None) -> list[Question]:
    """The first ``limit`` questions of ``split``; None takes all."""
    questions = (read_question(row) for row in items)
    chosen = (q for q in questions if split is None or q.metadata.get("split", split) == split)
    return list(islice(chosen, limit))
