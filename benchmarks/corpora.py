"""Generated passages and questions of any number, with the statistics that matter to a retriever.

Words follow Zipf's law with Mandelbrot's shift over a million ranks, a passage has about a hundred of them (wiki-18's
passages have 100), one in five comes from the few words of the passage's topic, and its title is two rarer words that
its text repeats. A question is a title, or half of one, and some words in a row of the text, frequent ones included.
Document ``i`` depends on the seed and ``i`` alone, so a small corpus is the beginning of a large one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import numpy.typing as npt

from search_gym import Document

Ranks = npt.NDArray[np.int64]

RANKS = 1_000_000
EXPONENT, SHIFT = 1.05, 2.7
TOPICS, WORDS_A_TOPIC = 2_000, 40
MEAN_LENGTH, DEVIATION = 100, 20
SHARE_OF_TOPIC = 0.2
_BATCH = 1_000


@cache
def _distribution() -> npt.NDArray[np.float64]:
    """Cumulative probabilities of the ranks."""
    weights = 1 / (np.arange(RANKS) + 1 + SHIFT) ** EXPONENT
    return np.cumsum(weights / weights.sum())


@cache
def _spellings() -> npt.NDArray[np.object_]:
    """A word for each rank; frequent ones are shorter."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
    words: list[str] = []
    stems = [""]
    while len(words) < RANKS:
        stems = [stem + syllable for stem in stems for syllable in syllables]
        words += stems
    return np.array(words[:RANKS], dtype=object)


@cache
def _topics(seed: int) -> Ranks:
    """Ranks of each topic's words (TOPICS, WORDS_A_TOPIC)."""
    draws = np.random.default_rng([seed, 0]).random((TOPICS, WORDS_A_TOPIC))
    return (200 * (RANKS / 200) ** draws).astype(np.int64)


def _batch(seed: int, number: int) -> Iterator[tuple[Ranks, Ranks]]:
    """Ranks of title and text of the documents of one batch."""
    rng = np.random.default_rng([seed, 1, number])
    lengths = np.clip(rng.normal(MEAN_LENGTH, DEVIATION, _BATCH), 20, 200).astype(np.int64)
    topics = _topics(seed)[rng.integers(TOPICS, size=_BATCH)]
    titles = (2_000 * (RANKS / 2_000) ** rng.random((_BATCH, 2))).astype(np.int64)
    ranks = np.searchsorted(_distribution(), rng.random(int(lengths.sum())))
    of_topic = rng.random(len(ranks)) < SHARE_OF_TOPIC
    columns = (WORDS_A_TOPIC * rng.random(len(ranks)) ** 2).astype(np.int64)
    ranks = np.where(of_topic, np.repeat(topics, lengths, axis=0)[np.arange(len(ranks)), columns], ranks)
    for text, title in zip(np.split(ranks, np.cumsum(lengths)[:-1]), titles, strict=True):
        text[:2] = title
        text[rng.integers(2, len(text))] = title[rng.integers(2)]
        yield title, text


def _text(ranks: Ranks) -> str:
    return " ".join(_spellings()[ranks])


def documents(number: int, *, seed: int = 0) -> Iterator[Document]:
    """The first ``number`` documents."""
    for start in range(0, number, _BATCH):
        for i, (title, text) in enumerate(_batch(seed, start // _BATCH), start):
            if i < number:
                yield Document(f"d{i}", _text(title).title(), f"{_text(text).capitalize()}.")


def questions(number: int, num_documents: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """``number`` questions, each with the id of the document among the first ``num_documents`` that it was made of."""
    rng = np.random.default_rng([seed, 2, num_documents])
    made: list[tuple[str, str]] = []
    for i in rng.integers(num_documents, size=number).tolist():
        batch, place = divmod(i, _BATCH)
        title, text = next(pair for at, pair in enumerate(_batch(seed, batch)) if at == place)
        start = int(rng.integers(len(text) - 7))
        words = [*title[: rng.integers(1, 3)], *text[start : start + int(rng.integers(4, 8))]]
        made.append((_text(np.array(words)), f"d{i}"))
    return made
