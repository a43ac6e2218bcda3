"""Worlds made for one student, what an agent scores in them, and BM25 to compare with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search_gym.questions import Question
from search_gym.retrievers import Document
from search_gym.scripted import SingleSearchPolicy, ceiling
from search_gym.tinywiki import load, vocabulary

KINDS = ("1-hop", "2-hop", "3-hop", "comparison", "intersection")
QUESTIONS, WORLDS, TOP_K = 24, 3, 3
Rankings = list[list[int]]


@dataclass(frozen=True)
class Exam:
    """Questions by kind, all about the same shuffled documents, with names that no other world has."""

    questions: Mapping[str, Sequence[Question]]
    documents: Sequence[Document]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What the student's function gets."""
        return [(document.title, document.text) for document in self.documents]

    @property
    def queries(self) -> list[str]:
        """The text of every question."""
        return [question.text for questions in self.questions.values() for question in questions]

    def scores(self, rankings: Rankings) -> dict[str, float]:
        """Exact match by kind, with one ranking for each of `queries`."""
        retriever = _Recorded(dict(zip(self.queries, rankings, strict=True)), self.documents)
        return {
            kind: ceiling(SingleSearchPolicy(), questions, retriever, TOP_K)[kind]
            for kind, questions in self.questions.items()
        }


@dataclass(frozen=True)
class _Recorded:
    rankings: Mapping[str, Sequence[int]]
    documents: Sequence[Document]

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        return [[self.documents[i] for i in self.rankings[query][:k]] for query in queries]


def make_exam(rng: np.random.Generator, questions: int = QUESTIONS) -> Exam:
    """A new exam."""
    seed = int(rng.integers(1 << 30))
    sets = {kind: load("test", kinds=(kind,), num_worlds=WORLDS, seed=seed) for kind in KINDS}
    documents = sets[KINDS[0]].documents
    new_name = _renaming(rng, documents)

    def renamed(text: str) -> str:
        return " ".join(_replaced(word, new_name) for word in text.split(" "))

    order = rng.permutation(len(documents))
    return Exam(
        {
            kind: [
                Question(
                    question.question_id,
                    renamed(question.text),
                    tuple(map(renamed, question.answers)),
                    {
                        **question.metadata,
                        "chain": [[renamed(part) for part in fact] for fact in question.metadata["chain"]],
                    },
                )
                for question in some[:questions]
            ]
            for kind, some in sets.items()
        },
        [Document(documents[i].doc_id, renamed(documents[i].title), renamed(documents[i].text)) for i in order],
    )


def _renaming(rng: np.random.Generator, documents: Sequence[Document]) -> dict[str, str]:
    """An invented word for each word of a title or an alias."""
    known = {word.lower() for entry in vocabulary() for word in entry.split()}
    fresh: dict[str, str] = {}
    names = {word for document in documents for word in document.title.split()}
    names |= {word for document in documents for word in document.text.rstrip(".").split() if word[:1].isupper()}
    for word in sorted(names - {"The"}):
        while True:
            letters = [
                rng.choice(list(pool)) for _ in range(rng.integers(2, 5)) for pool in ("bdfgklmnprstvz", "aeiou")
            ]
            name = "".join(letters).capitalize() + str(rng.choice(list("lnrst")))
            if name.lower() not in known:
                break
        known.add(name.lower())
        fresh[word] = name
    return fresh


def _replaced(word: str, new_name: Mapping[str, str]) -> str:
    bare = word.rstrip(".,?")
    return new_name.get(bare, bare) + word[len(bare) :]


def bm25(queries: Sequence[str], documents: Sequence[tuple[str, str]], k: int) -> Rankings:
    """BM25 of title and text, k1 = 1.2 and b = 0.75, Lucene's idf; ties to the first."""
    texts = [_words(f"{title} {text}") for title, text in documents]
    mean_length = sum(map(len, texts)) / len(texts)
    postings: dict[str, list[tuple[int, int]]] = {}
    for i, text in enumerate(texts):
        for word, count in Counter(text).items():
            postings.setdefault(word, []).append((i, count))
    found: Rankings = []
    for query in queries:
        scores = np.zeros(len(documents))
        for word in _words(query):
            holders = postings.get(word, [])
            idf = math.log(1 + (len(documents) - len(holders) + 0.5) / (len(holders) + 0.5))
            for i, count in holders:
                scores[i] += idf * count / (count + 1.2 * (0.25 + 0.75 * len(texts[i]) / mean_length))
        best = np.argsort(-scores, kind="stable")[:k]
        found.append([int(i) for i in best if scores[i] > 0])
    return found


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()
