"""The retrieval server as an ASGI application."""

# No `from __future__ import annotations`: FastAPI reads the annotations of the functions inside `make_app`, whose types
# are imported there.

import asyncio
import hmac
import logging
import platform
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from search_gym import __version__
from search_gym.errors import RetrievalError
from search_gym.plugins import require
from search_gym.retrievers import CorpusRetriever, Retriever
from search_gym.server.config import RequestLimits, check_token
from search_gym.server.metrics import Metrics
from search_gym.server.requests import RequestError, RetrieveRequest, read_request
from search_gym.server.searches import Answer, BusyError, Searches, answer

if TYPE_CHECKING:
    from fastapi import FastAPI

_LOG = logging.getLogger(__name__)
_CLIENT_LEFT = 499  # nginx's status for it; it reaches nobody but the counters
_REFUSAL_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 408: {"Connection": "close"}}  # RFC 9110 11.6.1 and 15.5.9

_SCHEMA = {
    "type": "object",
    "required": ["queries"],
    "additionalProperties": False,
    "properties": {
        "queries": {"type": "array", "items": {"type": "string"}},
        "topk": {"type": ["integer", "null"], "minimum": 1},
        "return_scores": {"type": "boolean", "default": False},
    },
}


def make_app(
    retriever: Retriever,
    *,
    description: str = "",
    threads: int = 1,
    token: str | None = None,
    limits: RequestLimits | None = None,
) -> "FastAPI":
    """An application that answers ``POST /retrieve``, ``GET /health`` and ``GET /metrics`` for ``retriever``.

    ``description`` is what /health calls the retriever, ``threads`` how many searches run at the same time, and
    ``token`` what clients must send as ``Authorization: Bearer TOKEN``; /health tells others only that it is ready.

    Raises:
        OptionError: a token that no header can hold. MissingDependencyError: the extra ``server`` is not installed.
    """
    fastapi = require("fastapi", extra="server")
    Request, Response = fastapi.Request, fastapi.Response
    JSONResponse = require("fastapi.responses", extra="server").JSONResponse
    check_token(token)
    limits = limits or RequestLimits()
    metrics = Metrics()
    searches = Searches(threads=threads, max_waiting=limits.max_waiting)
    about = {"status": "ready", **_describe(retriever, description)}
    app = fastapi.FastAPI(title="search-gym", version=__version__, docs_url=None, redoc_url=None)

    def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
        return JSONResponse({"error": message}, status, headers)

    def check(request: Request) -> None:
        if not _may_enter(request.headers.get("authorization", ""), token):
            raise RequestError(401, "expected the header Authorization: Bearer TOKEN, got none or another; do: send it")

    @app.post("/retrieve", openapi_extra={"requestBody": {"content": {"application/json": {"schema": _SCHEMA}}}})
    async def retrieve(request: Request) -> Response:
        started = time.perf_counter()
        response = await respond(request)
        metrics.requests.labels(response.status_code).inc()
        if response.status_code == 200:
            metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    async def respond(request: Request) -> Response:
        try:
            check(request)
            with searches.admit(), _shown(searches, metrics):
                body = await _read_body(request, limits)
                asked = read_request(body, limits)
                del body
                found = await search(request, asked)
        except RequestError as error:
            return refuse(error.status, str(error), _REFUSAL_HEADERS.get(error.status))
        except BusyError as error:
            return refuse(503, str(error), {"Retry-After": str(error.seconds)})
        except RetrievalError as error:
            _LOG.warning("a search failed: %s", error)
            return refuse(503, f"expected documents from the retriever, got a failure: {error}; do: try again later")
        except Exception as error:  # the boundary to the retriever, which may be anybody's code
            _LOG.exception("a search ended with an unexpected error")
            return refuse(
                500,
                f"expected documents from the retriever, got {type(error).__name__}; do: look into the server's log",
            )
        if found is None:
            metrics.abandoned.inc()
            return Response(status_code=_CLIENT_LEFT)
        metrics.queries.inc(len(asked.queries))
        metrics.documents.inc(found.num_documents)
        metrics.search_seconds.observe(found.seconds)
        return Response(found.body, media_type="application/json")

    async def search(request: Request, asked: RetrieveRequest) -> Answer | None:
        def call() -> Answer:
            metrics.running.inc()
            metrics.waiting.dec()
            try:
                return answer(retriever, asked)
            finally:
                metrics.running.dec()
                metrics.waiting.inc()

        # After the body, the next message says that the client has gone.
        gone = asyncio.ensure_future(request.receive())
        try:
            return await searches.run(call, gone)
        finally:
            gone.cancel()

    @app.get("/health")
    async def health(request: Request) -> Response:
        known = _may_enter(request.headers.get("authorization", ""), token)
        return JSONResponse(about if known else {"status": "ready"})

    @app.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        check(request)
        text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type=require("prometheus_client", extra="server").CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: Any) -> Response:
        return refuse(error.status, str(error))

    @app.exception_handler(404)
    async def unknown(request: Request, error: Any) -> Response:
        return refuse(404, f"expected /retrieve, /health or /metrics, got {request.url.path!r:.100}; do: correct it")

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: Any) -> Response:
        allowed = error.headers["Allow"]
        return refuse(405, f"expected {allowed}, got {request.method}; do: use that method", error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Any) -> Response:
        return refuse(500, f"expected an answer, got {type(error).__name__}; do: look into the server's log")

    return app


def _may_enter(authorization: str, token: str | None) -> bool:
    if token is None:
        return True
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())


def _describe(retriever: Retriever, description: str) -> dict[str, Any]:
    documents: Sequence[Any] | None = retriever.documents if isinstance(retriever, CorpusRetriever) else None
    return {
        "retriever": description or type(retriever).__name__,
        "documents": None if documents is None else len(documents),
        "versions": {"search_gym": __version__, "python": platform.python_version()},
    }


@contextmanager
def _shown(searches: Searches, metrics: Metrics):
    metrics.waiting.inc()
    try:
        yield
    finally:
        metrics.waiting.dec()


async def _read_body(request: Any, limits: RequestLimits) -> bytes:
    """The body, of which never more than the limit is held.

    Raises:
        RequestError: it is too large, packed, or does not arrive in time.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "expected a body without Content-Encoding, got a packed one; do: send it as it is")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            chunks: AsyncIterator[bytes] = request.stream()
            async for chunk in chunks:
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise RequestError(
                        413,
                        f"expected at most {limits.max_body_bytes} bytes, got more; do: send less at once",
                    )
    except TimeoutError as error:
        raise RequestError(
            408, f"expected the whole body within {limits.body_seconds} s, got {len(body)} bytes; do: try again"
        ) from error
    return bytes(body)
