"""A retriever behind any server that speaks Search-R1's ``POST /retrieve``.

The protocol is that of Jin et al. 2025 (arXiv 2503.09516): ``{"queries", "topk", "return_scores"}`` in,
``{"result": [[{"document": {"id", "contents"}, "score"}, ...], ...]}`` out. ``search-gym serve`` is such a server.
"""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from search_gym._jsonl import short
from search_gym.errors import OptionError, RetrievalError
from search_gym.plugins import require
from search_gym.retrievers import Document
from search_gym.retrievers._breaker import CircuitBreaker
from search_gym.retrievers._http_answers import MalformedAnswerError, read_answer, to_unicode
from search_gym.retrievers._ranking import check_k
from search_gym.retrievers._wrapping import Results, complete

if TYPE_CHECKING:
    import httpx2

TOKEN = "SEARCH_GYM_TOKEN"
_MAY_PASS = frozenset({429, 502, 503, 504})
_LONGEST_WAIT = 30.0
_LARGEST_ANSWER = 2**28
_ADVICE = {
    401: f"pass the server's token, or put it into the environment variable {TOKEN}",
    403: f"pass the server's token, or put it into the environment variable {TOKEN}",
    404: "check the path in url",
    413: "lower batch_size",
    422: "lower batch_size or k, or raise the server's limits",
}


@dataclass(frozen=True)
class HttpOptions:
    """Where the server is and how patiently it is asked; see `make`."""

    url: str
    token: str | None = field(default=None, repr=False)
    batch_size: int = 256
    concurrency: int = 4
    timeout: float = 60.0
    retries: int = 6
    backoff: float = 0.5
    breaker_failures: int = 3
    breaker_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Raises OptionError: a url that is no address, a token that no header can hold, or a number out of range."""
        try:
            url = urlsplit(self.url)
            is_address = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
        except (ValueError, AttributeError, TypeError):
            is_address, url = False, urlsplit("")
        if not is_address:
            raise OptionError(
                f"expected url to be like http://127.0.0.1:8000/retrieve, got {self.url!r:.200}; do: correct it"
            )
        if "@" in url.netloc or url.query or url.fragment:
            raise OptionError("expected a url without user, query and fragment, got one with; do: pass a token instead")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()):
            raise OptionError("expected a token of printable ASCII, got another one; do: correct it")
        for name, lowest in (("batch_size", 1), ("concurrency", 1), ("retries", 0), ("breaker_failures", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < lowest:
                raise OptionError(f"expected {name} to be an integer >= {lowest}, got {value!r}; do: correct it")
        if not self.timeout > 0 or not self.backoff >= 0 or not self.breaker_seconds >= 0:
            raise OptionError(
                "expected timeout > 0, backoff >= 0 and breaker_seconds >= 0, got "
                f"{self.timeout}, {self.backoff} and {self.breaker_seconds}; do: correct them"
            )

    @property
    def address(self) -> str:
        """Where requests go: ``url``, with ``/retrieve`` at its end."""
        url = self.url.rstrip("/")
        return url if urlsplit(url).path.endswith("/retrieve") else f"{url}/retrieve"


@dataclass(frozen=True)
class _Failure:
    """Why a try failed: what was got, the status if any, whether it may pass, how long the server asks to wait."""

    got: str
    status: int | None = None
    may_pass: bool = True
    wait: float = 0.0


class HttpRetriever:
    """Asks the server that ``options`` name; see `make`. Safe to use from many threads, and picklable.

    Copies in other processes have connections and a circuit breaker of their own. A pickle holds the token.
    """

    def __init__(self, options: HttpOptions) -> None:
        """Raises MissingDependencyError: httpx2 is not installed."""
        require("httpx2", extra="http")
        self.options = options
        self.breaker = CircuitBreaker(options.breaker_failures, options.breaker_seconds)
        self._random = random.Random()  # how long to wait must differ between processes, and changes no result
        self._clients: dict[int, httpx2.Client] = {}  # by process
        weakref.finalize(self, _close, self._clients)

    def __reduce__(self) -> tuple[Any, ...]:
        return HttpRetriever, (self.options,)

    def close(self) -> None:
        """Close the connections; the next search opens new ones."""
        _close(self._clients)

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Ask in batches of ``batch_size``, ``concurrency`` of them at a time.

        Raises:
            PartialRetrievalError: some batches failed for good; ``results`` holds the documents of the others.
            RetrievalError: all of them did. OptionError: ``k`` < 1.
        """
        check_k(k)
        size = self.options.batch_size
        batches = [list(queries[i : i + size]) for i in range(0, len(queries), size)]
        if not batches:
            return []
        if len(batches) == 1:
            return self._ask(batches[0], k)
        with ThreadPoolExecutor(min(self.options.concurrency, len(batches)), thread_name_prefix="http") as executor:
            outcomes = list(executor.map(lambda batch: self._attempt(batch, k), batches))
        failures = [outcome for outcome in outcomes if isinstance(outcome, RetrievalError)]
        if len(failures) == len(outcomes):
            raise failures[0]
        results: Results = []
        for batch, outcome in zip(batches, outcomes, strict=True):
            results += [outcome] * len(batch) if isinstance(outcome, RetrievalError) else outcome
        return complete(results)

    def _attempt(self, batch: list[str], k: int) -> list[list[Document]] | RetrievalError:
        try:
            return self._ask(batch, k)
        except RetrievalError as error:
            return error

    def _ask(self, batch: list[str], k: int) -> list[list[Document]]:
        """Send ``batch`` until it is answered or the tries are used up."""
        entered = self.breaker.enter()
        if entered is None:
            raise RetrievalError(
                f"expected {self.options.address} to answer again, got {self.options.breaker_failures} failures in a "
                f"row, so that it is left alone for another {self.breaker.seconds_left():.0f} s; "
                "do: check that the server is up"
            )
        is_alive = False
        try:
            tries = 1 if entered == "half-open" else self.options.retries + 1
            for attempt in range(tries):
                outcome = self._try(batch, k)
                if not isinstance(outcome, _Failure):
                    is_alive = True
                    return outcome
                if not outcome.may_pass or attempt == tries - 1:
                    # A request that is refused says nothing against the server.
                    is_alive = outcome.status is not None and 400 <= outcome.status < 500 and not outcome.may_pass
                    raise self._error(outcome, len(batch), attempt + 1)
                time.sleep(self._pause(attempt, outcome.wait))
        finally:
            self.breaker.leave(entered, succeeded=is_alive)
        raise AssertionError("unreachable: the last try returns or raises")

    def _pause(self, attempt: int, asked_for: float) -> float:
        """Seconds until the next try: exponential back-off with full jitter, at least what the server asks for."""
        return max(self._random.uniform(0.0, min(self.options.backoff * 2**attempt, _LONGEST_WAIT)), asked_for)

    def _client(self) -> httpx2.Client:
        """A client of this process: one that was forked must not share its parent's connections."""
        pid = os.getpid()
        if pid not in self._clients:
            httpx2 = require("httpx2", extra="http")
            token, size = self.options.token, self.options.concurrency
            # setdefault, because two threads may come here at the same time.
            self._clients.setdefault(
                pid,
                httpx2.Client(
                    timeout=httpx2.Timeout(self.options.timeout, pool=None),
                    limits=httpx2.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=30.0),
                    headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {token}"} if token else {})},
                    trust_env=False,
                ),
            )
        return self._clients[pid]

    def _try(self, batch: list[str], k: int) -> list[list[Document]] | _Failure:
        httpx2 = require("httpx2", extra="http")
        request = {"queries": [to_unicode(query) for query in batch], "topk": k, "return_scores": True}
        body = bytearray()
        deadline = time.monotonic() + self.options.timeout
        try:
            with self._client().stream("POST", self.options.address, json=request) as response:
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        return _Failure(f"no whole answer within {self.options.timeout} s, only {len(body)} bytes")
                    if len(body) > _LARGEST_ANSWER:
                        return _Failure(f"an answer of more than {_LARGEST_ANSWER} bytes", may_pass=False)
        except httpx2.TimeoutException as error:
            return _Failure(f"no answer within {self.options.timeout} s ({type(error).__name__})")
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            return _Failure(f"{type(error).__name__}: {error}")
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            return _Failure(f"{type(error).__name__}: {error}", may_pass=False)
        if response.status_code != 200:
            return _refusal(response.status_code, response.headers, bytes(body[:1000]))
        try:
            return read_answer(bytes(body), len(batch), k)
        except MalformedAnswerError as error:
            return _Failure(f"an answer that cannot be used: {error}", may_pass=False)

    def _error(self, failure: _Failure, num_queries: int, tries: int) -> RetrievalError:
        advice = _ADVICE.get(failure.status or 0, "check that the server is up and speaks Search-R1's protocol")
        return RetrievalError(
            f"expected documents for {num_queries} queries from {self.options.address}, got in {tries} "
            f"{'try' if tries == 1 else 'tries'}, the last one: {failure.got}; do: {advice}"
        )


def _close(clients: dict[int, httpx2.Client]) -> None:
    client = clients.pop(os.getpid(), None)
    if client is not None:
        client.close()


def _refusal(status: int, headers: Mapping[str, str], body: bytes) -> _Failure:
    where = f" to {short(headers['Location'])}" if 300 <= status < 400 and "Location" in headers else ""
    text = body.decode("utf-8", "replace")
    said = f" with {text[:300]!r}" if text else ""
    wait = _seconds_of(headers.get("Retry-After", ""))
    return _Failure(f"status {status}{where}{said}", status, status in _MAY_PASS, wait)


def _seconds_of(retry_after: str) -> float:
    """What a Retry-After header asks for, in seconds or as a date (RFC 9110, section 10.2.3), at most half a minute."""
    if retry_after.isascii() and retry_after.isdecimal():
        return min(float(retry_after), _LONGEST_WAIT)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    now = datetime.now(UTC) if date.tzinfo else datetime.now(UTC).replace(tzinfo=None)
    return min(max((date - now).total_seconds(), 0.0), _LONGEST_WAIT)


def make(
    documents: Sequence[Document],
    *,
    url: str,
    token: str | None = None,
    batch_size: int = HttpOptions.batch_size,
    concurrency: int = HttpOptions.concurrency,
    timeout: float = HttpOptions.timeout,
    retries: int = HttpOptions.retries,
    backoff: float = HttpOptions.backoff,
    breaker_failures: int = HttpOptions.breaker_failures,
    breaker_seconds: float = HttpOptions.breaker_seconds,
) -> HttpRetriever:
    """A client of the server at ``url``. ``documents`` are not used: the server has its own, whatever a task brings.

    Args:
        documents: ignored.
        url: address of the server; ``/retrieve`` is added where it is missing. Proxies of the environment are not used.
        token: sent as ``Authorization: Bearer TOKEN``; by default the environment variable SEARCH_GYM_TOKEN, if set.
        batch_size: queries in a request.
        concurrency: requests at a time.
        timeout: seconds that one try may take.
        retries: how often a request is sent again: after a failure to connect, a broken connection, no answer in time,
            or status 429, 502, 503 or 504.
        backoff: before retry n (from 0) it waits between 0 and ``backoff * 2**n`` seconds, at most 30, and at least
            what Retry-After asks for.
        breaker_failures: after so many requests in a row that failed in all their tries the next ones fail at once,
        breaker_seconds: until so many seconds have passed and one request has succeeded.

    Raises:
        OptionError: an option out of range. MissingDependencyError: httpx2 is not installed.
    """
    token = token if token is not None else os.environ.get(TOKEN) or None
    options = HttpOptions(
        url, token, batch_size, concurrency, timeout, retries, backoff, breaker_failures, breaker_seconds
    )
    return HttpRetriever(options)
