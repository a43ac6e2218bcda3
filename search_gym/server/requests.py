"""The body of ``POST /retrieve``, read strictly: whatever it holds, it becomes a request or a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from search_gym._jsonl import short
from search_gym.errors import SearchGymError
from search_gym.server.config import RequestLimits

_FIELDS = ("queries", "topk", "return_scores")


class RequestError(SearchGymError, ValueError):
    """A request that is refused with HTTP status ``status``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RetrieveRequest:
    """``k`` documents are wanted for each of ``queries``."""

    queries: list[str]
    k: int
    return_scores: bool


def read_request(body: bytes, limits: RequestLimits) -> RetrieveRequest:
    """The request in ``body``.

    Raises:
        RequestError: not UTF-8 or not JSON (status 400), or not what the protocol and ``limits`` allow (422).
    """
    values = _decode(body)
    if not isinstance(values, dict):
        raise _invalid('an object {"queries": [...], "topk": 3, "return_scores": true}', values, "send one")
    unknown = sorted(values.keys() - set(_FIELDS))
    if unknown:
        raise _invalid(f"the fields {', '.join(_FIELDS)}", unknown, "leave the others out")
    if "queries" not in values:
        raise RequestError(422, "expected the field queries, got none; do: send a list of strings")
    return_scores = values.get("return_scores", False)
    if not isinstance(return_scores, bool):
        raise _invalid("return_scores to be true or false", return_scores, "correct it")
    k = _read_k(values.get("topk"), limits)
    queries = _read_queries(values["queries"], limits)
    if len(queries) * k > limits.max_documents:
        raise RequestError(
            422,
            f"expected at most {limits.max_documents} documents in all, got {len(queries)} queries with topk {k}; "
            "do: send fewer queries in a request",
        )
    return RetrieveRequest(queries, k, return_scores)


def _read_k(k: Any, limits: RequestLimits) -> int:
    if k is None:
        return limits.default_k
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= limits.max_k:
        raise _invalid(f"topk to be an integer from 1 to {limits.max_k}, or null", k, "correct it")
    return k


def _read_queries(queries: Any, limits: RequestLimits) -> list[str]:
    if not isinstance(queries, list):
        raise _invalid("queries to be a list of strings", queries, "correct it")
    if len(queries) > limits.max_queries:
        raise RequestError(
            422, f"expected at most {limits.max_queries} queries, got {len(queries)}; do: send several requests"
        )
    for i, query in enumerate(queries):
        if not isinstance(query, str):
            raise _invalid(f"queries[{i}] to be a string", query, "correct it")
        if len(query) > limits.max_query_characters:
            raise RequestError(
                422,
                f"expected at most {limits.max_query_characters} characters in queries[{i}], got {len(query)}; "
                "do: cut it",
            )
        if not _is_unicode(query):
            raise _invalid(f"queries[{i}] to be Unicode text", "a lone surrogate", "replace it")
    return queries


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise RequestError(400, f"expected a body in UTF-8, got {error}; do: encode it so") from error
    except RecursionError as error:
        raise RequestError(400, "expected a flat JSON object, got a deep nest; do: correct it") from error
    except ValueError as error:
        raise RequestError(400, f"expected a JSON object, got something else: {error}; do: correct it") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has a field twice")
    return values


def _invalid(expected: str, got: Any, do: str) -> RequestError:
    return RequestError(422, f"expected {expected}, got {short(got)}; do: {do}")
