"""A seeded encoder without a model, fast enough to make a million vectors while one waits.

It lets the benchmark measure faiss and the way to it. It says nothing about how well or how fast a real model encodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

DIMENSION = 128
_BUCKETS = 2**16
_TEXTS_AT_A_TIME = 256


class HashingEncoder:
    """Sums one random vector for each word, longer words weighing more because they are rarer; length 1."""

    dimension = DIMENSION
    description: Mapping[str, Any] = {"hashing": 1, "dimension": DIMENSION}

    def __init__(self) -> None:
        self._vectors = np.random.default_rng(0).standard_normal((_BUCKETS, DIMENSION), dtype=np.float32)

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors (n, dimension)."""
        parts = [texts[i : i + _TEXTS_AT_A_TIME] for i in range(0, len(texts), _TEXTS_AT_A_TIME)]
        empty = np.empty((0, DIMENSION), dtype=np.float32)
        return np.concatenate([empty, *map(self._encode, parts)])

    def encode_passages(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors (n, dimension)."""
        return self.encode_queries(texts)

    def _encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        words = [[".", *text.lower().replace('"', " ").split()] for text in texts]
        flat = [word for line in words for word in line]
        buckets = np.array([crc32(word.encode("utf-8", "replace")) % _BUCKETS for word in flat])
        weights = np.array([len(word) ** 2 for word in flat], dtype=np.float32)
        starts = np.cumsum([0, *map(len, words[:-1])])
        sums = np.add.reduceat(self._vectors[buckets] * weights[:, None], starts, axis=0)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)
