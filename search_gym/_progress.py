"""Progress bars on long work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from search_gym.plugins import require

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, *, total: int | None = None, unit: str = "doc") -> Iterator[Item]:
    """``items``, with a progress bar on standard error while they are taken; none where it is not a terminal."""
    bar = require("tqdm", extra="bm25").tqdm
    yield from bar(items, description, total=total, unit=f" {unit}", unit_scale=True, disable=None)
