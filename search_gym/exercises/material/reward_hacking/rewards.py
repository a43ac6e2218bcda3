"""What is right, the two rewards of the starter file, and rewards that are wrong in known ways."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

Turn = tuple[str, str, str, str]
Reward = Callable[[str | None, list[str], list[Turn], str], float]


def normalize(text: str) -> str:
    """The definition, step by step."""
    lowered = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """Exact match after normalisation."""
    return float(answer is not None and normalize(answer) in [normalize(right) for right in answers])


def by_text(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """The starter file's."""
    return float(any(normalize(right) in normalize(text) for right in answers))


def by_containment(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """The starter file's."""
    return float(any(normalize(right) in normalize(answer or "") for right in answers))


def _articles_anywhere(text: str) -> str:
    lowered = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub("the|an|a", "", lowered).split())


def _articles_anywhere_to_spaces(text: str) -> str:
    lowered = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub("the|an|a", " ", lowered).split())


def _all_but_words(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", text.lower())).split())


def _punctuation_to_spaces(text: str) -> str:
    lowered = "".join(" " if letter in string.punctuation else letter for letter in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", lowered).split())


def _articles_first(text: str) -> str:
    without = re.sub(r"\b(a|an|the)\b", " ", text.lower())
    return " ".join("".join(letter for letter in without if letter not in string.punctuation).split())


def _no_articles(text: str) -> str:
    return " ".join("".join(letter for letter in text.lower() if letter not in string.punctuation).split())


def _articles_to_nothing(text: str) -> str:
    lowered = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b ?", "", lowered).split())


def _case_kept(text: str) -> str:
    kept = "".join(letter for letter in text if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def _spaces_kept(text: str) -> str:
    lowered = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", lowered).strip()


NORMALIZERS: dict[str, Callable[[str], str]] = {
    "articles were deleted inside of words, so that 'theatre' became 'tre'. Use word borders, \\b.": _articles_anywhere,
    "articles were replaced inside of words, so that 'theatre' became ' tre'. Use word borders, \\b.": (
        _articles_anywhere_to_spaces
    ),
    "everything but letters, digits and space was deleted, or \\w kept the underscore. Delete string.punctuation: it "
    "holds '_', and no dash or quotation mark that is not ASCII.": _all_but_words,
    "punctuation was replaced by a space, so that 'U.S.' became 'u s'. Delete it.": _punctuation_to_spaces,
    "articles were removed before punctuation, so that 'a-b' lost its a. The order is part of the rule.": (
        _articles_first
    ),
    "articles were not removed.": _no_articles,
    "upper case was kept. 'The' is an article, too.": _case_kept,
    "white space was not collapsed.": _spaces_kept,
}


def _last_tag_in_text(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return reward(found[-1] if found else answer, answers, turns, text)


def _last_turn(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return reward(turns[-1][1] if turns else answer, answers, turns, text)


def _first_answer_only(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return reward(answer, answers[:1], turns, text)


def _answers_as_they_are(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return float(answer is not None and normalize(answer) in answers)


def _nothing_normalised(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return float(answer in answers)


def _contained_in_right(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return float(answer is not None and any(normalize(answer) in normalize(right) for right in answers))


def _f1(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    said = normalize(answer or "").split()
    scores = []
    for right in answers:
        words = normalize(right).split()
        common = sum((Counter(said) & Counter(words)).values())
        scores.append(2 * common / (len(said) + len(words)) if said or words else 0.0)
    return max(scores, default=0.0)


def _pays_searches(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return reward(answer, answers, turns, text) + 0.1 * sum(turn[0] == "search" for turn in turns)


REWARDS: dict[str, Reward] = {
    "a right answer was looked for inside of the given one. Who lists everything is then always right.": by_containment,
    "the given answer was looked for inside of a right one. A single letter, or nothing at all, is then paid.": (
        _contained_in_right
    ),
    "a right answer was looked for in the whole episode. The documents hold it, whoever asked for them.": by_text,
    "the answer was read from the text. Documents and earlier turns may hold <answer> tags, too; `answer` is the one "
    "that counts.": _last_tag_in_text,
    "the answer was read from the last turn, which may be a search for it. Use `answer`, which is None then.": (
        _last_turn
    ),
    "only the first of the answers counts. Any of them is right.": _first_answer_only,
    "the right answers were not normalised, the given one was.": _answers_as_they_are,
    "nothing was normalised.": _nothing_normalised,
    "words in common were paid (F1). It is all or nothing here.": _f1,
    "searches were paid. A policy that may earn by searching searches until its turns are used up.": _pays_searches,
}
