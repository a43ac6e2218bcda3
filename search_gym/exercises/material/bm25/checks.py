"""The checks of exercise 3, and a reference that follows the formula word by word."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.exercises.checking import Caller, Check, show, unlike
from search_gym.exercises.suspects import NAMED, Case, compare

Documents = list[list[str]]
Scores = npt.NDArray[np.float64]
Idf = Callable[[int, int], float]

WORDS = ("mara", "a", "velden", "port", "sol", "solar", "is", "the", "of", "born", "film")
"""Some of them are inside of others."""
NAMES = ("query", "documents", "k1", "b")


def lucene(n: int, total: int) -> float:
    """The idf of a word that n of ``total`` documents hold."""
    return math.log(1 + (total - n + 0.5) / (n + 0.5))


def idf(word: str, documents: Documents, formula: Idf = lucene) -> float:
    """The definition."""
    return formula(sum(word in document for document in documents), len(documents))


def _counts_words(word: str, documents: Documents) -> float:
    return lucene(sum(document.count(word) for document in documents), sum(map(len, documents)))


def _counts_occurrences(word: str, documents: Documents) -> float:
    n = sum(document.count(word) for document in documents)
    odds = (len(documents) - n + 0.5) / (n + 0.5)
    return math.log(1 + odds) if odds > -1 else math.nan


def _counts_inside(word: str, documents: Documents) -> float:
    return lucene(sum(word in " ".join(document) for document in documents), len(documents))


def _inside(document: list[str], word: str) -> int:
    return " ".join(document).count(word)


def _last_word(query: list[str], documents: Documents, k1: float, b: float) -> Scores:
    scores = np.zeros(len(documents))
    for word in query:
        one = score([word], documents, k1, b)
        scores = np.where(one != 0, one, scores)
    return scores


IDFS: dict[str, Callable[[str, Documents], float]] = {
    "the 1 in the logarithm is missing. A word in more than half of the documents then counts against them.": partial(
        idf, formula=lambda n, total: math.log((total - n + 0.5) / (n + 0.5))
    ),
    "the logarithm is to base 10. It is the natural one.": partial(
        idf, formula=lambda n, total: lucene(n, total) / math.log(10)
    ),
    "the logarithm is to base 2. It is the natural one.": partial(
        idf, formula=lambda n, total: lucene(n, total) / math.log(2)
    ),
    "N / n was taken, the idf of TF-IDF.": partial(
        idf, formula=lambda n, total: math.log(total / n) if n else math.inf
    ),
    "occurrences were counted. n is a number of documents, however often each holds the word.": _counts_occurrences,
    "words were counted. N and n are numbers of documents.": _counts_words,
    "letters inside of other words were found: 'a' is in 'mara', which is another word. Look in the list.": (
        _counts_inside
    ),
}


def score(
    query: list[str],
    documents: Documents,
    k1: float,
    b: float,
    *,
    weight: Callable[[str, Documents], float] = idf,
    length: Callable[[list[str]], float] = len,
    mean: Callable[[Sequence[float]], float] = lambda lengths: sum(lengths) / len(lengths),
    words: Callable[[list[str]], Any] = list,
    frequency: Callable[[list[str], str], int] = list.count,
    part: Callable[[float, float], float] = lambda f, norm: f / (f + norm),
    norm: Callable[[float, float, float], float] = lambda k1, b, ratio: k1 * (1 - b + b * ratio),
) -> Scores:
    """The formula, one document and one word at a time; every part of it can be replaced by a wrong one."""
    average = mean([length(document) for document in documents])
    scores = np.zeros(len(documents))
    for i, document in enumerate(documents):
        for word in words(query):
            f = frequency(document, word)
            if f:
                scores[i] += weight(word, documents) * part(f, norm(k1, b, length(document) / average))
    return scores


def _one_plus_k1(query: list[str], documents: Documents, k1: float, b: float) -> Scores:
    return (k1 + 1) * score(query, documents, k1, b)


def _relative_frequency(query: list[str], documents: Documents, k1: float, b: float) -> Scores:
    average = sum(map(len, documents)) / len(documents)
    scores = np.zeros(len(documents))
    for i, document in enumerate(documents):
        for word in query:
            if f := document.count(word) / max(1, len(document)):
                scores[i] += idf(word, documents) * f / (f + k1 * (1 - b + b * len(document) / average))
    return scores


SCORES: dict[str, Callable[..., Scores]] = {
    "the numerator has the factor k1 + 1 of the older form. It orders documents alike, but Lucene's scores lack it.": (
        _one_plus_k1
    ),
    "a word that the query holds twice was counted once.": partial(score, words=lambda query: sorted(set(query))),
    "the length ratio is upside down: long documents gain. It is |d| / mean length.": partial(
        score, norm=lambda k1, b, ratio: k1 * (1 - b + b / ratio)
    ),
    "b and 1 - b were exchanged. With b = 0 the length must not matter.": partial(
        score, norm=lambda k1, b, ratio: k1 * (b + (1 - b) * ratio)
    ),
    "k1 multiplies only a part of the length factor. It stands before the whole bracket.": partial(
        score, norm=lambda k1, b, ratio: k1 * (1 - b) + b * ratio
    ),
    "f does not saturate. It stands in the denominator, too.": partial(score, part=lambda f, norm: f / (1 + norm)),
    "f was taken for 1 wherever it is not 0. A word that is there three times counts more, though not three times.": (
        partial(score, part=lambda f, norm: 1 / (1 + norm))
    ),
    "idf is missing. A rare word tells more than a common one.": partial(score, weight=lambda word, documents: 1.0),
    "different words were counted for a document's length. |d| counts every word.": partial(
        score, length=lambda document: len(set(document))
    ),
    "the mean length leaves out empty documents.": partial(
        score, mean=lambda lengths: sum(lengths) / sum(1 for n in lengths if n)
    ),
    "letters inside of other words were counted: 'a' is in 'mara', which is another word. Count in the list.": partial(
        score, frequency=_inside
    ),
    "letters inside of other words were found: 'a' is in 'mara', which is another word. Look in the list.": partial(
        score, frequency=_inside, weight=_counts_inside
    ),
    "each word's part took the place of the one before. They add up.": _last_word,
    "f was divided by the document's length. The bracket does that already.": _relative_frequency,
    "each word's score is that of another idf; mend idf first.": partial(
        score, weight=lambda word, documents: lucene(sum(d.count(word) for d in documents), sum(map(len, documents)))
    ),
}


def draw(rng: np.random.Generator, most: int = 6) -> Documents:
    """Documents over a few words, some of them empty, at least one not."""
    sizes = rng.integers(0, 9, size=int(rng.integers(1, most)))
    sizes[int(rng.integers(0, len(sizes)))] += 1
    common = rng.permutation(len(WORDS))
    weights = 1.0 / (1 + common)
    return [rng.choice(WORDS, size=int(n), p=weights / weights.sum()).tolist() for n in sizes]


def _query(rng: np.random.Generator) -> list[str]:
    return rng.choice((*WORDS, "unknown"), size=int(rng.integers(1, 5))).tolist()


def _parameters(rng: np.random.Generator) -> tuple[float, float]:
    return round(float(rng.uniform(0.3, 2.5)), 2), round(float(rng.uniform(0.1, 0.9)), 2)


def _idf(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [(str(rng.choice(WORDS)), draw(rng, 8)) for _ in range(100)]
    return compare(call, "idf", cases, idf, arguments=("word", "documents"), suspects=IDFS)


def _compare(call: Caller, cases: Sequence[Case]) -> str | None:
    """As `compare`; of what it cannot name, a formula that is right but for the student's own idf is called that."""
    problem = compare(call, "bm25_scores", cases, score, arguments=NAMES, suspects=SCORES)
    if problem is None or problem.startswith(NAMED):
        return problem
    if "got nan" in problem:
        return f"{problem} Where k1 is 0 and a document does not hold the word, the fraction is 0 / 0: leave it out."
    pairs = [(word, documents) for query, documents, *_ in cases for word in query]
    own = {
        _key(*pair): result.value if isinstance(result.value, (int, float)) else math.nan
        for pair, result in zip(pairs, call.results("idf", pairs), strict=True)
    }
    suspect = partial(score, weight=lambda word, documents: own[_key(word, documents)])
    told = {"the formula is right, but not the idf in it. Mend idf first.": suspect}
    return compare(call, "bm25_scores", cases, score, arguments=NAMES, suspects=told)


def _key(word: str, documents: Documents) -> str:
    return repr((word, documents))


def _formula(call: Caller, rng: np.random.Generator) -> str | None:
    return _compare(call, [(_query(rng), draw(rng), *_parameters(rng)) for _ in range(100)])


def _limits(call: Caller, rng: np.random.Generator) -> str | None:
    ends = [(k1, b) for k1 in (0.0, 1.2) for b in (0.0, 1.0)]
    cases = [(_query(rng), draw(rng), *ends[i % len(ends)]) for i in range(40)]
    return _compare(call, [*cases, ([], draw(rng), 1.2, 0.75), (["unknown"], draw(rng), 1.2, 0.75)])


def _order(call: Caller, rng: np.random.Generator) -> str | None:
    for _ in range(10):
        documents, query, (k1, b) = draw(rng, 12), _query(rng), _parameters(rng)
        order = rng.permutation(len(documents))
        one, other = call.many(
            "bm25_scores", [(query, documents, k1, b), (query[::-1], [documents[i] for i in order], k1, b)]
        )
        if not np.any(np.asarray(one)) and np.any(score(query, documents, k1, b)):
            return f"bm25_scores({show(query)}, {show(documents)}) gives 0 for every document"
        if problem := unlike(np.asarray(other), np.asarray(one)[order]):
            return (
                f"with the same {len(documents)} documents in another order, and the words of the query backwards: "
                f"{problem}. Does a score depend on the documents or the words before it, or on the last call?"
            )
    return None


def _large(call: Caller, rng: np.random.Generator) -> str | None:
    documents = [[f"w{i}" for i in row] for row in rng.integers(0, 3000, size=(1000, 12)).tolist()]
    cases = [(rng.choice(documents[i], size=5).tolist(), documents, 1.2, 0.75) for i in range(2)]
    results = call.results("bm25_scores", cases)
    if any("took more than" in (result.error or "") for result in results):
        return (
            "2 queries over 1,000 documents took too long. Do you look through all documents once for each document? "
            "How many documents hold a word is the same for all of them: count it once for each word of the query."
        )
    for (query, *_), got, document in zip(cases, call.many("bm25_scores", cases), documents, strict=False):
        if np.asarray(got).shape != (len(documents),):
            return f"expected {len(documents)} scores, got shape {np.asarray(got).shape}"
        best = documents[int(np.argmax(got))]
        if len(set(query) & set(best)) < len(set(query) & set(document)):
            return (
                f"the best document for {show(query)} is {show(best)}, though {show(document)} holds more of its words"
            )
    return None


CHECKS = (
    Check("idf", 2, "Without it, 'of' and 'the' decide what is retrieved.", _idf),
    Check(
        "the formula",
        4,
        "What the policy reads is what is ranked first. A wrong term shows as questions that no query can answer.",
        _formula,
    ),
    Check(
        "limits",
        2,
        "k1 = 0, b = 0 and b = 1 are what one tries when retrieval is bad; each has to mean what it says.",
        _limits,
    ),
    Check("order", 1, "A ranking that depends on the order of the corpus makes two runs differ for no reason.", _order),
    Check(
        "a thousand documents",
        1,
        "A round of training asks some hundred queries. What is slow here is slower than the language model.",
        _large,
    ),
)
