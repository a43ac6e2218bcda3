"""How much of what a question needs a retriever finds: the exact match that reading its documents could give at most.

The question itself is the query, so this bounds an agent that searches once with it. One that asks follow-up questions
may find more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import NamedTuple

import numpy as np

from search_gym.errors import OptionError, RetrievalError
from search_gym.questions import Question
from search_gym.retrievers import Document, Retriever
from search_gym.rewards import normalize_answer

# What nobody would look for in a passage: verdicts, and answers of articles and punctuation alone.
_NOT_IN_PASSAGES = frozenset({"", "yes", "no"})
_Z95 = 1.959963984540054


class Share(NamedTuple):
    """A mean over ``num_questions`` of values in [0, 1], with its 95 % interval (`wilson_interval`)."""

    mean: float
    low: float
    high: float
    num_questions: int


class RecallAt(NamedTuple):
    """What is in the first ``k`` documents; None where no question says what to look for.

    ``answer``: whether any of them holds an answer. ``passages``: the share of the gold passages among them.
    ``all_passages``: whether all gold passages are among them.
    """

    k: int
    answer: Share | None
    passages: Share | None
    all_passages: Share | None


class Recall(NamedTuple):
    """Recall for each k.

    ``num_without_span`` questions have only answers that no passage states, such as yes and no; they do not count in
    ``answer``. ``num_without_passages`` name no gold passages, and do not count in ``passages`` and ``all_passages``.
    """

    num_questions: int
    num_without_span: int
    num_without_passages: int
    at: list[RecallAt]


def answer_recall(
    questions: Iterable[Question], retriever: Retriever, ks: Sequence[int] = (1, 3, 5, 10), *, batch_size: int = 256
) -> Recall:
    """Search each question's text for the largest of ``ks`` documents and look at the first k of them.

    A document holds an answer if the words of the normalised answer (`search_gym.rewards.normalize_answer`) stand next
    to each other, in their order, in its normalised title or text: then copying them is an exact match. Gold passages
    are those of ``metadata["supporting_ids"]``. DPR's evaluation looks for words in the same way
    (Karpukhin et al. 2020, arXiv 2004.04906).

    Differs from DPR: the words are those of the exact-match reward and not those of DPR's tokenizer, and titles count,
    because a policy reads them.

    Raises:
        RetrievalError: the retriever failed. OptionError: no ``ks``, or one below 1, or ``batch_size`` below 1.
    """
    if not ks or min(ks) < 1 or batch_size < 1:
        raise OptionError(f"expected ks and batch_size >= 1, got {list(ks)} and {batch_size}; do: correct them")
    first_ranks: list[float] = []
    gold_ranks: list[list[float]] = []
    num_questions = 0
    waiting = iter(questions)
    while batch := list(islice(waiting, batch_size)):
        num_questions += len(batch)
        for question, documents in zip(batch, _search(retriever, batch, max(ks)), strict=True):
            spans = _spans(question.answers, _NOT_IN_PASSAGES)
            if spans:
                first_ranks.append(_first_rank(_holds(document, spans) for document in documents))
            gold = question.metadata.get("supporting_ids", ())
            if gold:
                gold_ranks.append([_first_rank(d.doc_id == doc_id for d in documents) for doc_id in set(gold)])
    at = []
    for k in sorted(set(ks)):
        shares = [float(np.mean(np.asarray(ranks) <= k)) for ranks in gold_ranks]
        at.append(
            RecallAt(
                k,
                answer=_share([rank <= k for rank in first_ranks]),
                passages=_share(shares),
                all_passages=_share([share == 1 for share in shares]),
            )
        )
    return Recall(num_questions, num_questions - len(first_ranks), num_questions - len(gold_ranks), at)


def holds_answer(document: Document, answers: Sequence[str]) -> bool:
    """Whether the words of any of ``answers``, normalised, stand together in the document's title or text."""
    return _holds(document, _spans(answers, {""}))


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), in [0, 1].

    It holds for the mean of any ``count`` values in [0, 1], too, and is wider than need be where they are not 0 or 1,
    because none vary more than those.
    """
    centre = (mean + _Z95**2 / (2 * count)) / (1 + _Z95**2 / count)
    reach = _Z95 / (1 + _Z95**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z95**2 / (4 * count**2))
    return max(0.0, min(centre - reach, mean)), min(1.0, max(centre + reach, mean))


def _search(retriever: Retriever, batch: Sequence[Question], k: int) -> list[list[Document]]:
    try:
        results = retriever.search([question.text for question in batch], k)
    except RetrievalError:
        raise
    except Exception as error:  # the boundary to foreign code: whatever it raises becomes one type of ours
        raise RetrievalError(f"{type(retriever).__name__} raised {type(error).__name__}: {error}") from error
    if len(results) != len(batch):
        raise RetrievalError(f"expected {len(batch)} lists of documents, got {len(results)}; do: check the retriever")
    return [documents[:k] for documents in results]


def _spans(answers: Sequence[str], without: Set[str]) -> list[str]:
    """The different normalised answers but those in ``without``, with a space on both sides."""
    return [f" {answer} " for answer in dict.fromkeys(map(normalize_answer, answers)) if answer not in without]


def _holds(document: Document, spans: Sequence[str]) -> bool:
    # A space on both sides of every word makes a run of words a substring.
    parts = [f" {normalize_answer(part)} " for part in (document.title, document.text)]
    return any(span in part for span in spans for part in parts)


def _first_rank(found: Iterator[bool]) -> float:
    """The rank (from 1) of the first True; infinity without one."""
    return next((rank for rank, is_found in enumerate(found, 1) if is_found), math.inf)


def _share(values: Sequence[float]) -> Share | None:
    if not len(values):
        return None
    mean = float(np.mean(values))
    return Share(mean, *wilson_interval(mean, len(values)), len(values))
