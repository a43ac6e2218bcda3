"""Retrievers: one file each, found by name.

A plug-in is a module in this package (or any ``"package.module:attribute"``) with a function
``make(documents, **named options) -> Retriever``. One that is built over others takes them as an option named
``retriever`` (one) or ``retrievers`` (several), each an object or anything that `load` takes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from search_gym import plugins
from search_gym.errors import OptionError
from search_gym.retrievers._spec import Spec


@dataclass(frozen=True, slots=True)
class Document:
    """A passage. ``title`` holds no quotes around it; ``score`` is the retriever's own, higher is better."""

    doc_id: str
    title: str
    text: str
    score: float = 0.0


@runtime_checkable
class Retriever(Protocol):
    """Anything that answers a batch of queries.

    ``search`` returns one list per query, in the order of the queries, each with at most ``k`` documents, best first.
    It is a pure function of its arguments: the same query and ``k`` always give the same documents, however the
    queries are batched. It raises ``RetrievalError`` when it cannot answer.
    """

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]: ...


@runtime_checkable
class CorpusRetriever(Retriever, Protocol):
    """A retriever that can show all the documents it searches in; one built over others that cannot shows none."""

    @property
    def documents(self) -> Sequence[Document]: ...


def load(
    retriever: str | Mapping[str, Any] | Spec | Retriever, /, documents: Sequence[Document] = (), **options: Any
) -> Retriever:
    """Build a retriever over ``documents``, by name or from a description of several (see `Spec`).

    ``"bm25"``, ``"rerank(hybrid(bm25, dense), top=20)"``, ``{"retriever": "noisy", "over": ["bm25"], "seed": 1}`` and
    ``"package.module:make"`` are all good. ``options`` are added to those of the outermost; retrievers that open a
    saved index or ask a server need no documents. A `Retriever` is returned as it is.

    Raises:
        UnknownNameError: no such retriever. OptionError: a description that cannot be read, or an option it does not
        take. CorpusError: unusable documents. IndexFileError: no usable index where one is named.
    """
    if isinstance(retriever, (str, Mapping)):
        retriever = Spec.from_json(retriever)
    if not isinstance(retriever, Spec):
        if options:
            raise OptionError(f"expected options only for a retriever to build, got {sorted(options)} and an object")
        return retriever
    maker = plugins.find(sys.modules[__name__], retriever.name, "make")
    inner = [load(spec, documents) for spec in retriever.over]
    over = _name_arguments(maker, retriever, inner) if inner else {}
    return plugins.call(maker, retriever.name, documents, **{**over, **retriever.options, **options})


def _name_arguments(maker: Callable[..., Any], spec: Spec, inner: list[Retriever]) -> dict[str, Any]:
    """The option that takes the retrievers inside the parentheses: ``retrievers`` all of them, ``retriever`` one."""
    known = inspect.signature(maker).parameters
    if "retrievers" in known:
        return {"retrievers": inner}
    if "retriever" in known and len(inner) == 1:
        return {"retriever": inner[0]}
    most = "one retriever" if "retriever" in known else "no retriever"
    raise OptionError(f"expected {most} inside {spec.name}(...), got {len(inner)}: {spec}; do: take the others out")


def available() -> list[str]:
    """Names of the retrievers in this package."""
    return plugins.names(sys.modules[__name__])
