"""A circuit breaker (Nygard 2007, "Release It!"): what keeps failing is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Literal

State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Closed until ``failures`` requests in a row have failed; then open for ``seconds``; then half-open.

    Half-open, it lets one request through: if that succeeds it closes, if not it is open again. Safe to use from many
    threads.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = failures
        self.seconds = seconds
        self._clock = clock
        self._lock = Lock()
        self._failed_in_a_row = 0
        self._opened_at: float | None = None
        self._is_probing = False

    @property
    def state(self) -> State:
        """Where it stands now."""
        with self._lock:
            return self._state()

    def _state(self) -> State:
        if self._opened_at is None:
            return "closed"
        return "half-open" if self._clock() - self._opened_at >= self.seconds else "open"

    def enter(self) -> State | None:
        """ "closed" or "half-open" if a request may be made, for which `leave` must be called; None if not."""
        with self._lock:
            state = self._state()
            if state == "open" or self._is_probing:
                return None
            self._is_probing = state == "half-open"
            return state

    def leave(self, entered: State, *, succeeded: bool) -> None:
        """Tell how the request ended for which `enter` returned ``entered``."""
        with self._lock:
            if entered == "half-open":
                self._is_probing = False
            elif self._opened_at is not None:
                return  # it began before the breaker opened, and says nothing about now
            if succeeded:
                self._failed_in_a_row, self._opened_at = 0, None
                return
            self._failed_in_a_row += 1
            if entered == "half-open" or self._failed_in_a_row >= self.failures:
                self._opened_at = self._clock()

    def seconds_left(self) -> float:
        """How long it stays open; 0 if it is not."""
        with self._lock:
            return 0.0 if self._opened_at is None else max(0.0, self._opened_at + self.seconds - self._clock())
