"""Exercise 8: design a retriever. The page says how it is measured; numpy and the standard library are enough.

Your file runs by itself: it cannot import search_gym, and it never sees the questions' answers.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

Pair = tuple[str, str]
"""The title and the text of a document."""


def search(queries: Sequence[str], documents: Sequence[Pair], k: int) -> list[list[int]]:
    """For each query at most ``k`` documents, different ones, best first, as indices into ``documents``.

    What is found for a query depends on the query, the documents and ``k`` alone, not on the other queries.
    """
    raise NotImplementedError


# What follows is complete: a beginning that you may build on, and the score to beat.


def words(text: str) -> list[str]:
    """Lower-case words, in order."""
    return re.findall(r"\w+", text.lower())


def bm25(queries: Sequence[str], documents: Sequence[Pair], k: int) -> list[list[int]]:
    """BM25 of title and text together, with Lucene's idf, k1 = 1.2 and b = 0.75 (exercise 3)."""
    counts = [Counter(words(f"{title} {text}")) for title, text in documents]
    lengths = [sum(count.values()) for count in counts]
    mean_length = sum(lengths) / len(lengths)
    holders = Counter(word for count in counts for word in count)
    found = []
    for query in queries:
        scores = []
        for count, length in zip(counts, lengths, strict=True):
            score = 0.0
            for word in words(query):
                if word in count:
                    idf = math.log(1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5))
                    score += idf * count[word] / (count[word] + 1.2 * (0.25 + 0.75 * length / mean_length))
            scores.append(score)
        best = sorted(range(len(documents)), key=lambda i: (-scores[i], i))[:k]
        found.append([i for i in best if scores[i] > 0])
    return found
