"""What a retrieval server's answer says, checked entirely. No network here."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise
from typing import Any

from search_gym._jsonl import short
from search_gym.corpus import parse_contents
from search_gym.retrievers import Document


class MalformedAnswerError(ValueError):
    """An answer of status 200 that is not what the protocol promises: "expected ..., got ..."."""


def read_answer(body: bytes, num_queries: int, k: int) -> list[list[Document]]:
    """The documents in ``body``: one list for each of ``num_queries``, each with at most ``k``, best first.

    An item is ``{"document": {"id", "contents"}, "score"}``, or the document itself. Without scores the one at rank r
    gets 1 / r; without an id, as search engines of the Web answer, a document gets a digest of its contents. Other
    fields are left alone.

    Raises:
        MalformedAnswerError: anything else.
    """
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswerError(f"expected JSON, got something else ({error!r:.80}): {short(body)}") from error
    lists = values.get("result") if isinstance(values, dict) else None
    if not isinstance(lists, list):
        raise _malformed('an object {"result": [...]}', values)
    if len(lists) != num_queries:
        raise MalformedAnswerError(f"expected {num_queries} lists of documents, got {len(lists)}")
    return [_read_list(items, k) for items in lists]


def _read_list(items: Any, k: int) -> list[Document]:
    if not isinstance(items, list):
        raise _malformed("a list of documents for each query", items)
    if len(items) > k:
        raise MalformedAnswerError(f"expected at most {k} documents for a query, got {len(items)}")
    bare = [item for item in items if isinstance(item, dict)]
    if len(bare) < len(items):
        raise _malformed("documents that are objects", items)
    num_scores = sum("score" in item for item in bare)
    if num_scores not in (0, len(items)):
        raise MalformedAnswerError(f"expected scores for all documents of a query or for none, got {num_scores}")
    scores = [_read_score(item["score"]) if num_scores else 1 / rank for rank, item in enumerate(bare, 1)]
    if any(later > earlier for earlier, later in pairwise(scores)):
        raise _malformed("the scores of a query from the highest to the lowest", scores)
    return [_read_document(item.get("document", item), score) for item, score in zip(bare, scores, strict=True)]


def _read_score(score: Any) -> float:
    is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
    if not is_number or (isinstance(score, float) and not math.isfinite(score)):
        raise _malformed("a finite number as score", score)
    try:
        return float(score)
    except OverflowError as error:
        raise _malformed("a finite number as score", score) from error


def _read_document(document: Any, score: float) -> Document:
    contents = document.get("contents") if isinstance(document, dict) else None
    if not isinstance(contents, str):
        raise _malformed('a document {"id", "contents"} with a string as contents', document)
    contents = to_unicode(contents)
    doc_id = document.get("id")
    if doc_id is None:
        doc_id = hashlib.blake2b(contents.encode(), digest_size=8).hexdigest()
    elif isinstance(doc_id, bool) or not isinstance(doc_id, (str, int)):
        raise _malformed("a string or an integer as id of a document", doc_id)
    return parse_contents(to_unicode(str(doc_id)), contents, score)


def to_unicode(text: str) -> str:
    """``text`` with U+FFFD in the place of lone surrogates, which no server can be sent and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _malformed(expected: str, got: Any) -> MalformedAnswerError:
    return MalformedAnswerError(f"expected {expected}, got {short(got)}")
