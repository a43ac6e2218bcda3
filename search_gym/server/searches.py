"""Searching beside an event loop: a few threads, a bounded number of requests that wait for them."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

from search_gym.corpus import format_contents
from search_gym.errors import RetrievalError, SearchGymError
from search_gym.retrievers import Document, Retriever
from search_gym.server.requests import RetrieveRequest

_LONGEST_WAIT = 30


class BusyError(SearchGymError, RuntimeError):
    """As many requests wait as may; another one may succeed in ``seconds``."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(
            f"expected fewer requests at a time, got {waiting} that already wait; do: try again in {seconds} s"
        )
        self.seconds = seconds


@dataclass(frozen=True)
class Answer:
    """The body of an answer, and how many documents it holds."""

    body: bytes
    num_documents: int
    seconds: float
    """Time that the retriever took."""


class Searches:
    """Runs calls in ``threads`` threads, first come, first served.

    Requests are admitted before they are read; at most ``threads + max_waiting`` are in the house. All methods belong
    to one event loop.
    """

    def __init__(self, *, threads: int, max_waiting: int) -> None:
        self.threads = threads
        self.max_waiting = max_waiting
        self.admitted = 0
        self.running = 0
        self._mean_seconds = 0.0
        self._turn = asyncio.Semaphore(threads)
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        for number in range(threads):
            # Daemons, so that a retriever that never returns cannot keep the process from ending.
            Thread(target=_work, args=(self._jobs,), name=f"search-{number}", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Requests that were admitted and are not being searched for."""
        return self.admitted - self.running

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Be one of the requests in the house.

        Raises:
            BusyError: there are too many.
        """
        if self.admitted >= self.threads + self.max_waiting:
            seconds = math.ceil(self.admitted * self._mean_seconds / self.threads)
            raise BusyError(self.waiting, min(max(seconds, 1), _LONGEST_WAIT))
        self.admitted += 1
        try:
            yield
        finally:
            self.admitted -= 1

    async def run(self, call: Callable[[], Answer], gone: asyncio.Future[Any]) -> Answer | None:
        """What ``call`` returns when its turn has come; None, without calling it, if ``gone`` is done before.

        Raises:
            Exception: what ``call`` raises.
        """
        if not await self._take_turn(gone):
            return None
        self.running += 1
        started = time.perf_counter()
        try:
            future: Future[Answer] = Future()
            self._jobs.put((future, call))
            return await asyncio.wrap_future(future)
        finally:
            self.running -= 1
            self._turn.release()
            seconds = time.perf_counter() - started
            self._mean_seconds = 0.9 * self._mean_seconds + 0.1 * seconds if self._mean_seconds else seconds

    async def _take_turn(self, gone: asyncio.Future[Any]) -> bool:
        turn = asyncio.ensure_future(self._turn.acquire())
        has_turn = False
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            has_turn = turn.done() and not gone.done()
            return has_turn
        finally:
            if not has_turn and not turn.cancel():
                self._turn.release()


def _work(jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        future, call = jobs.get()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:  # handed over, to be raised where the result is awaited
                future.set_exception(error)
        del future, call  # nothing is kept while the next job is waited for


def answer(retriever: Retriever, request: RetrieveRequest) -> Answer:
    """Search, and write the answer down as Search-R1's protocol has it.

    Raises:
        RetrievalError: the retriever failed, on a single query or on all, or its answer is not one list of documents
        with finite scores per query.
    """
    started = time.perf_counter()
    results = retriever.search(request.queries, request.k)
    seconds = time.perf_counter() - started
    if len(results) != len(request.queries):
        raise RetrievalError(
            f"expected {len(request.queries)} lists of documents from the retriever, got {len(results)}"
        )
    lists = [_write(documents, request.return_scores) for documents in results]
    body = b'{"result": [' + b", ".join(lists) + b"]}"
    return Answer(body, sum(map(len, results)), seconds)


def _write(documents: Sequence[Document], return_scores: bool) -> bytes:
    items: list[dict[str, Any]] = []
    for document in documents:
        item: dict[str, Any] = {"id": document.doc_id, "contents": format_contents(document)}
        if return_scores:
            score = float(document.score)
            if not math.isfinite(score):
                raise RetrievalError(f"expected finite scores from the retriever, got {score} for {document.doc_id!r}")
            item = {"document": item, "score": score}
        items.append(item)
    return json.dumps(items).encode()
