"""What a check raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_gym.errors import SearchGymError

if TYPE_CHECKING:
    from search_gym.testing._batches import TokenBatch


class InvarianceError(SearchGymError, AssertionError):
    """What a sampled token receives depends on something that it must not depend on.

    The message names both, with the numbers. ``before`` and ``after`` are the two batches that were compared, as numpy
    arrays, and None where there were none.
    """

    def __init__(self, message: str, before: TokenBatch | None = None, after: TokenBatch | None = None) -> None:
        super().__init__(message)
        self.before = before
        self.after = after


class SubjectError(SearchGymError, TypeError):
    """What was given to a check cannot be checked: a result of the wrong type or shape, or one that means nothing."""
