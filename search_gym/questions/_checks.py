"""What can be wrong with a question set, or is worth knowing before a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from search_gym.questions import Question
from search_gym.rewards import normalize_answer

_EXAMPLES = 3


class Finding(NamedTuple):
    """``is_error``: the set should not be used like this; otherwise something to know."""

    is_error: bool
    text: str


def check_size(split: str, size: int, whole: int) -> list[Finding]:
    """A split with another number of questions than the published one: a part of it, or another version."""
    if size == whole:
        return []
    return [Finding(False, f"{split}: {size:,} questions where the whole split has {whole:,}")]


def check_questions(split: str, questions: Iterable[Question], doc_ids: frozenset[str] | None) -> list[Finding]:
    """Repeated ids, answers that the metric cannot tell apart, gold passages that are not in the corpus."""
    repeated, blank, missing = [], [], []
    ids: set[str] = set()
    for question in questions:
        if question.question_id in ids:
            repeated.append(question.question_id)
        ids.add(question.question_id)
        if not any(map(normalize_answer, question.answers)):
            blank.append(question.question_id)
        if doc_ids is not None and not doc_ids.issuperset(question.metadata.get("supporting_ids", ())):
            missing.append(question.question_id)
    return [
        *_finding(True, split, repeated, "with an id that an earlier one has"),
        *_finding(
            False,
            split,
            blank,
            "whose answers are articles and punctuation alone, which exact match cannot tell from each other",
        ),
        *_finding(True, split, missing, "with gold passages that are not in the corpus"),
    ]


def check_overlap(splits: Mapping[str, Sequence[Question]]) -> list[Finding]:
    """Questions with the same normalised words, in one split or in two."""
    findings = []
    first: dict[str, tuple[str, str]] = {}
    again: dict[tuple[str, str], list[str]] = {}
    for split, questions in splits.items():
        for question in questions:
            text = normalize_answer(question.text)
            earlier, _ = first.setdefault(text, (split, question.question_id))
            if first[text] != (split, question.question_id):
                again.setdefault((earlier, split), []).append(question.question_id)
    for (earlier, split), ids in again.items():
        where = "this split" if earlier == split else f"the split {earlier}"
        findings += _finding(False, split, ids, f"that an earlier one of {where} asks in the same words")
    return findings


def _finding(is_error: bool, split: str, ids: Sequence[str], what: str) -> list[Finding]:
    if not ids:
        return []
    more = ", ..." if len(ids) > _EXAMPLES else ""
    number = "1 question" if len(ids) == 1 else f"{len(ids):,} questions"
    return [Finding(is_error, f"{split}: {number} {what}: {', '.join(ids[:_EXAMPLES])}{more}")]
