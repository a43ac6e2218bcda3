"""Exercise 3: BM25 from its formula. Fill in two functions; page.md derives what they compute."""

import numpy as np


def idf(word: str, documents: list[list[str]]) -> float:
    """The inverse document frequency of ``word``: ln(1 + (N - n + 0.5) / (n + 0.5)).

    N is the number of ``documents`` (each a list of words), n how many of them hold ``word`` at least once.
    """
    raise NotImplementedError


def bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    """The BM25 score of every document for ``query``, as Lucene computes it.

        score(d) = sum over the words q of the query of
                   idf(q) * f(q, d) / (f(q, d) + k1 * (1 - b + b * |d| / mean length))

    f(q, d) is how often d holds q, |d| how many words d has. A word that the query holds twice counts twice.

    Args:
        query: lower-case words; may be empty, and may hold words that no document has.
        documents: lower-case words of each document, at least one document with a word; a document may be empty.
        k1: at least 0, how slowly the score grows with f.
        b: in [0, 1], how much long documents lose.

    Returns:
        (len(documents),) float64, 0 for documents without any word of the query.
    """
    raise NotImplementedError
