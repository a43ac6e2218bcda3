"""Question sets: one file each, found by name.

A plug-in is a module in this package (or any ``"package.module:attribute"``) with a function
``load(split, **named options) -> Sequence[Question]``. It may name the option that text after a colon stands for, as in
``"jsonl:FILE"``, with ``COLON_OPTION = "path"``, and the splits that it has, if not train and test, with ``SPLITS``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from search_gym import plugins
from search_gym.corpus import Corpus
from search_gym.retrievers import Document


@dataclass(frozen=True, slots=True)
class Question:
    """One question with every string that counts as its answer.

    ``metadata`` may hold ``kind`` (such as "2-hop"), ``supporting_ids`` (ids of the gold documents) and whatever the
    set knows; it must be plain data (JSON-able), because saved states carry it.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class LazyQuestions(Sequence[Question]):
    """Questions that ``read`` makes of their index whenever one is asked for, so that none is held in memory."""

    def __init__(self, read: Callable[[int], Question], indices: Sequence[int]) -> None:
        self._read = read
        self._indices = indices

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> LazyQuestions: ...
    def __getitem__(self, index: int | slice) -> Question | LazyQuestions:
        if isinstance(index, slice):
            return LazyQuestions(self._read, self._indices[index])
        return self._read(self._indices[index])

    def __len__(self) -> int:
        return len(self._indices)


class QuestionSet(Sequence[Question]):
    """An immutable sequence of questions together with the documents that they are asked about."""

    def __init__(self, questions: Sequence[Question], documents: Sequence[Document]) -> None:
        self._questions = questions if isinstance(questions, LazyQuestions) else tuple(questions)
        self.documents = documents if isinstance(documents, Corpus) else tuple(documents)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> QuestionSet: ...
    def __getitem__(self, index: int | slice) -> Question | QuestionSet:
        if isinstance(index, slice):
            return QuestionSet(self._questions[index], self.documents)
        return self._questions[index]

    def __len__(self) -> int:
        return len(self._questions)


def load(name_or_spec: str, split: str = "test", **options: Any) -> Sequence[Question]:
    """Load a question set by name (``"tinywiki"``), or from ``"package.module:attribute"``.

    What stands after the colon of ``"jsonl:FILE"`` or ``"nq:FOLDER"`` is the set's most important option.

    Raises:
        UnknownNameError: no such set. OptionError: an option the set does not take. QuestionError: malformed data.
    """
    name, _, value = name_or_spec.partition(":")
    if value and (option := colon_option(name)):
        name_or_spec, options = name, {option: value, **options}
    elif value and not value.isidentifier():
        plugins.find(sys.modules[__name__], name, "load")  # no attribute, so this names what was misspelt
    loader = plugins.find(sys.modules[__name__], name_or_spec, "load")
    return plugins.call(loader, name_or_spec, split, **options)


def colon_option(name: str) -> str | None:
    """The option that text after a colon stands for in the set ``name`` of this package, if it has one."""
    if name not in available():
        return None
    return vars(importlib.import_module(f"{__name__}.{name}")).get("COLON_OPTION")


def available() -> list[str]:
    """Names of the question sets in this package."""
    return plugins.names(sys.modules[__name__])
