"""The hidden checks of exercise 8: exact match of a scripted agent with the student's retriever, in new worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from search_gym.exercises.checking import Caller, Check, changed, show, value_of
from search_gym.exercises.material.design.exam import KINDS, TOP_K, Exam, Rankings, bm25, make_exam

MARGIN, GOOD, VERY_GOOD = 0.1, 0.7, 0.9
"""Measured on 4 exams: BM25 has 0.41, greedy feedback 0.60, a design that follows links in order 0.99 and more."""


def _valid(queries: Sequence[str], got: Any, size: int, k: int) -> str | None:
    """Why ``got`` is no answer to ``queries``; None if it is one."""
    if not isinstance(got, list) or len(got) != len(queries):
        return f"search: expected a list with one list for each of {len(queries)} queries, got {show(got, 150)}"
    for query, found in zip(queries, got, strict=True):
        told = f"search([{query!r}], documents, {k})"
        indices = found.tolist() if isinstance(found, np.ndarray) else found
        if not isinstance(indices, list) or not all(
            type(i) is int or np.asarray(i).dtype.kind in "iu" for i in indices
        ):
            return f"{told}: expected a list of indices (int), got {show(found, 150)}. Return indices, not documents."
        if len(indices) > k:
            return f"{told}: expected at most {k} documents, got {len(indices)}. Cut the list at k."
        if not all(0 <= int(i) < size for i in indices):
            return f"{told}: expected indices in [0, {size}), got {show(found, 150)}"
        if len({int(i) for i in indices}) != len(indices):
            return f"{told}: expected different documents, got {show(found, 150)}. A place that is used twice is lost."
    return None


def _plain(got: Any) -> Rankings:
    return [[int(i) for i in found] for found in got]


def _check_valid(call: Caller, rng: np.random.Generator) -> str | None:
    exam = make_exam(rng, 3)
    queries = [*exam.queries, "", "?", "qqqqq wwwww", exam.documents[0].title, "the of is", exam.documents[1].text]
    cases = [(queries, exam.pairs, k) for k in (1, 3, 5)] + [([], exam.pairs, 3), (queries[:2], exam.pairs[:2], 5)]
    results = call.results("search", cases)
    for case, result in zip(cases, results, strict=True):
        if problem := _valid(case[0], value_of("search", result), len(case[1]), case[2]):
            return problem
    title = exam.documents[0].title
    for found in results[:3]:
        if not found.value[queries.index(title)]:
            return f"search([{title!r}], documents, k): expected documents, of which one has this title, got none"
    for case, result in zip(cases, results, strict=True):
        if changed(result, case) is not None:
            return "search changed its queries or documents in place. Work on copies: the environment uses them again."
    return None


def _check_batch(call: Caller, rng: np.random.Generator) -> str | None:
    exam = make_exam(rng, 4)
    queries = exam.queries
    order = rng.permutation(len(queries)).tolist()
    cases = [
        (queries, exam.pairs, TOP_K),
        ([queries[i] for i in order], exam.pairs, TOP_K),
        *(([query], exam.pairs, TOP_K) for query in queries),
        (queries, exam.pairs, TOP_K),
    ]
    together, shuffled, *alone, again = call.many("search", cases)
    for got, (asked, _, _) in zip((together, shuffled, *alone, again), cases, strict=True):
        if problem := _valid(asked, got, len(exam.documents), TOP_K):
            return problem
    if not any(together):
        return f"search: expected documents for some of {len(queries)} questions, got none for any"
    for place, i in enumerate(order):
        others = {"in another order": shuffled[place], "alone": alone[i][0], "a second time": again[i]}
        for how, found in others.items():
            if _plain([found]) != _plain([together[i]]):
                return (
                    f"the query {queries[i]!r} finds {show(together[i])} among others, expected the same when it is "
                    f"asked {how}, got {show(found)}. Does something stay behind from one query to the next, or does "
                    "chance decide, or the order of a set?"
                )
    return None


def _ask(call: Caller, exam: Exam) -> Rankings | str:
    got = call("search", exam.queries, exam.pairs, TOP_K)
    return _valid(exam.queries, got, len(exam.documents), TOP_K) or _plain(got)


def _failure(exam: Exam, rankings: Rankings, kind: str) -> str:
    """A question of ``kind`` whose documents were not all found."""
    position = {document.doc_id: i for i, document in enumerate(exam.documents)}
    found = dict(zip(exam.queries, rankings, strict=True))
    for question in exam.questions[kind]:
        needed = [position[doc_id] for doc_id in question.metadata["supporting_ids"]]
        if not set(needed) <= set(found[question.text]):
            want, got = ([exam.documents[i].text for i in some] for some in (needed, found[question.text]))
            return f"For example, {question.text!r} needs {want}, got {got}."
    return ""


def _table(mine: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {mine[kind]:.2f} (BM25 {theirs[kind]:.2f})" for kind in KINDS)


def _check_kept(call: Caller, rng: np.random.Generator) -> str | None:
    exam = make_exam(rng)
    rankings = _ask(call, exam)
    if isinstance(rankings, str):
        return rankings
    mine, theirs = exam.scores(rankings), exam.scores(bm25(exam.queries, exam.pairs, TOP_K))
    for kind in ("1-hop", "comparison"):
        if mine[kind] < 0.9:
            return (
                f"expected 0.9 or more on {kind} questions, where BM25 has {theirs[kind]:.2f}, got {mine[kind]:.2f}. "
                f"{_failure(exam, rankings, kind)} Does each name in the query get a document of its own?"
            )
    return None


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _check_score(least: float | None) -> Callable[[Caller, np.random.Generator], str | None]:
    """``least`` is the mean over kinds; None asks for `MARGIN` more than BM25 has."""

    def run(call: Caller, rng: np.random.Generator) -> str | None:
        exam = make_exam(rng)
        rankings = _ask(call, exam)
        if isinstance(rankings, str):
            return rankings
        mine = exam.scores(rankings)
        score = _mean(mine)
        if least is not None and score >= least:
            return None
        theirs = exam.scores(bm25(exam.queries, exam.pairs, TOP_K))
        wanted = _mean(theirs) + MARGIN if least is None else least
        if score >= wanted:
            return None
        worst = min(KINDS, key=lambda kind: mine[kind])
        return (
            f"expected a score of {wanted:.2f} or more, got {score:.2f}, where BM25 has {_mean(theirs):.2f}: "
            f"{_table(mine, theirs)}. Weakest are {worst} questions. {_failure(exam, rankings, worst)} "
            f"{ADVICE[worst]}"
        )

    return run


ADVICE = {
    "1-hop": "The document about the name that holds the relation has to come first.",
    "2-hop": "Read the first document: the entity that it names is the title of the second one.",
    "3-hop": "Go on from every document that you find, with the next word to the left in the query: order decides.",
    "comparison": "Two names need a document each.",
    "intersection": "Look for documents that mention the names, and keep those whose titles are the same.",
}

CHECKS = (
    Check(
        "valid results",
        1,
        "Training sends every query that a policy can write, the empty one too, and one error ends the run.",
        _check_valid,
    ),
    Check(
        "each query for itself",
        1,
        "If the other queries of a batch, or chance, change what is found, no run can be repeated and no result kept.",
        _check_batch,
    ),
    Check(
        "nothing lost",
        1,
        "A design that gains on hard questions and loses on easy ones does worse in the end: most are easy.",
        _check_kept,
    ),
    Check(
        "beats BM25",
        3,
        "BM25 costs nothing to run; whatever replaces it has to be measurably better.",
        _check_score(None),
    ),
    Check(
        "follows links",
        2,
        "What a question does not name has to be read from what was found.",
        _check_score(GOOD),
    ),
    Check(
        "follows them in order",
        2,
        "The words are the same in 'the spouse of the mayor' and 'the mayor of the spouse'; the answers are not.",
        _check_score(VERY_GOOD),
    ),
)
