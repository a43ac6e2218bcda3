"""Searches that are made in a thread, one call at a time, each with all queries that have come meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Found = TypeVar("Found")


class BackgroundSearch(Generic[Found]):
    """``retrieve`` in the background: what is submitted while a call is under way is answered by the next one.

    So a slow retriever is asked rarely and for much, and no query waits for more than the call that it came too late
    for and its own.
    """

    def __init__(self, retrieve: Callable[[list[str]], Sequence[Found]]) -> None:
        self._retrieve = retrieve
        self._waiting: deque[tuple[list[str], Future[list[Found]]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search_gym-retrieval")

    def submit(self, queries: Sequence[str]) -> Future[list[Found]]:
        """The results of ``queries``, in their order, when they are there; or what ``retrieve`` has raised."""
        future: Future[list[Found]] = Future()
        self._waiting.append((list(queries), future))
        self._thread.submit(self._answer)
        return future

    def close(self) -> None:
        """Wait for the searches that are under way."""
        self._thread.shutdown()

    def _answer(self) -> None:
        taken = []
        while self._waiting:
            taken.append(self._waiting.popleft())
        if not taken:
            return
        try:
            found = list(self._retrieve([query for queries, _ in taken for query in queries]))
        except BaseException as error:  # handed over, to be raised where the result is asked for
            for _, future in taken:
                future.set_exception(error)
            return
        for queries, future in taken:
            future.set_result(found[: len(queries)])
            found = found[len(queries) :]
