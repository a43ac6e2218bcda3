"""The episode that every contestant plays, the server that they ask, and what is asked of a contestant."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

QUESTION = "Who played Brian O'Conner in The Fast and the Furious?"
ANSWER = "Paul Walker"
SEARCH_TURN = "<think>I do not know the cast by heart.</think><search>actor of Brian O'Conner</search>"
ANSWER_TURN = "<think>The first document names Paul Walker.</think><answer>Paul Walker</answer>"
QUERY = "actor of Brian O'Conner"
TITLE, TEXT = "Paul Walker", "Paul William Walker IV (born September 12, 1973) was an American actor."
NUM_DOCUMENTS = 3
NUM_SLOTS = 16
Played = tuple[str, float]
"""The text of all observations after the prompt, and the sum of rewards."""


class Server:
    """A search server that takes ``seconds`` for a request; one at a time if ``serial``, however many queries it has.

    ``per_query``: every query of a request takes ``seconds``, so that batches gain nothing.
    """

    def __init__(self, seconds: float = 0.0, *, serial: bool = False, per_query: bool = False) -> None:
        self.seconds, self.per_query = seconds, per_query
        self._lock = threading.Lock() if serial or per_query else None
        self._async_lock = asyncio.Lock()

    def wait(self, num_queries: int = 1) -> None:
        """Take as long as a request of so many queries takes."""
        if not self.seconds:
            return
        seconds = self.seconds * (num_queries if self.per_query else 1)
        if self._lock is None:
            time.sleep(seconds)
        else:
            with self._lock:
                time.sleep(seconds)

    async def wait_async(self) -> None:
        """The same for a request of one query, without a thread."""
        if not self.seconds:
            return
        if self._lock is None:
            await asyncio.sleep(self.seconds)
        else:
            async with self._async_lock:
                await asyncio.sleep(self.seconds)


class Contestant(ABC):
    """What is asked of every one; `episode` is one call, which plays ``per_call`` episodes."""

    per_call = 1

    @abstractmethod
    def episode(self) -> float:
        """Play, and return the mean reward."""

    def played(self, num_chunks: int) -> Played | None:
        """What came of an episode whose turns were given in so many chunks; None where an action has no parts."""
        return None

    def vectors(self) -> dict[str, Callable[[], None]]:
        """Ways to let ``NUM_SLOTS`` episodes begin and search."""
        return {}


def stub(server: Server) -> Any:
    """A retriever of search_gym's that asks ``server`` and finds the same documents for every query."""
    from search_gym import Document

    class Stub:
        def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
            server.wait(len(queries))
            return [[Document(str(i), TITLE, TEXT) for i in range(k)] for _ in queries]

    return Stub()


def play(
    reset: Callable[[], Any], step: Callable[[Any], tuple[str, float, bool]], turns: Sequence[Any], num_chunks: int
) -> Played:
    """An episode whose turns are given in so many chunks, until it ends."""
    reset()
    observed, total = "", 0.0
    for turn in turns:
        size = -(-len(turn) // num_chunks)
        for start in range(0, len(turn), size):
            text, reward, is_over = step(turn[start : start + size])
            observed, total = observed + text, total + reward
            if is_over:
                return observed, total
    return observed, total
