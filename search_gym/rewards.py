"""String metrics and reward functions.

A reward function takes the `Outcome` of a finished episode and returns one float. It never sees the prompt, and it can
tell what the policy wrote from what the environment wrote, so neither an example in the prompt nor an ``<answer>`` or
``<information>`` written in the wrong place can be paid.

References: SQuAD (arXiv 1606.05250) and HotpotQA (arXiv 1809.09600) for the metrics; Search-R1 (arXiv 2503.09516 and
2505.15117) for the rewards.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from search_gym.errors import OptionError

Event = Literal["search", "answer", "invalid", "open"]

# Neither pattern repeats anything without bound, so matching is linear in the length of the text.
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_TAG = re.compile(r"(</?(?:think|search|information|answer)>)")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED_CLASS_ANSWERS = frozenset({"yes", "no", "noanswer"})


class TurnRecord(NamedTuple):
    """One turn: ``content`` of its tag pair, ``text`` of the policy's own tokens, ``observation`` appended after it."""

    event: Event
    content: str
    text: str
    observation: str = ""


class Outcome(NamedTuple):
    """What a reward function may look at when an episode ends.

    ``answer``: content of the answering turn, None when the episode was truncated. ``answers``: every string that is
    right. ``text``: everything after the prompt, policy and environment parts in order.
    """

    answer: str | None
    answers: tuple[str, ...]
    turns: tuple[TurnRecord, ...]
    text: str


RewardFn = Callable[[Outcome], float]


def normalize_answer(s: str) -> str:
    """Lower-case ``s``, delete ASCII punctuation, drop the words a, an and the, and collapse white space (SQuAD)."""
    return " ".join(_ARTICLE.sub(" ", s.lower().translate(_DELETE_PUNCTUATION)).split())


def em_score(prediction: str | None, answers: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised answer, else 0.0.

    A missing or blank prediction scores 0. Answers of articles and punctuation alone ("The The") normalise to nothing
    and are equal to any other prediction that does. A single string counts as one answer.

    Differs from the reference: there a blank prediction is right when an answer normalises to nothing.
    """
    return _best(_exact, prediction, answers)


def subem_score(prediction: str | None, answers: Sequence[str]) -> float:
    """1.0 if any normalised answer is a substring of the normalised prediction, else 0.0.

    An answer that normalises to nothing is no substring of anything: it counts only where `em_score` does.
    """
    return _best(_contains, prediction, answers)


def f1_score(prediction: str | None, answers: Sequence[str]) -> float:
    """The highest F1 between the bags of normalised words of the prediction and of an answer, in [0, 1].

    As in HotpotQA's evaluation, yes, no and noanswer are all or nothing: "no" earns nothing from "no man's land".

    Differs from HotpotQA: two strings that both normalise to nothing have F1 1, so that `em_score` 1 implies F1 1.
    """
    return _best(_f1, prediction, answers)


def _best(score: Callable[[str, str], float], prediction: str | None, answers: Sequence[str]) -> float:
    if prediction is None or not prediction.strip():
        return 0.0
    golds = (answers,) if isinstance(answers, str) else answers
    if prediction in golds:
        return 1.0  # every metric's value for equal strings
    predicted = normalize_answer(prediction)
    return max((float(score(predicted, normalize_answer(gold))) for gold in golds), default=0.0)


def _exact(predicted: str, gold: str) -> float:
    return predicted == gold


def _contains(predicted: str, gold: str) -> float:
    return gold in predicted if gold else not predicted


def _f1(predicted: str, gold: str) -> float:
    if predicted == gold:
        return 1.0
    if predicted in _CLOSED_CLASS_ANSWERS or gold in _CLOSED_CLASS_ANSWERS:
        return 0.0
    predicted_words, gold_words = predicted.split(), gold.split()
    common = (Counter(predicted_words) & Counter(gold_words)).total()
    # 2PR / (P + R) with P = common / |predicted| and R = common / |gold|.
    return 2 * common / (len(predicted_words) + len(gold_words))


def exact_match(outcome: Outcome) -> float:
    """1.0 if the episode was answered and the answer is an exact match (`em_score`), else 0.0."""
    return em_score(outcome.answer, outcome.answers)


def has_valid_structure(outcome: Outcome) -> bool:
    """Whether the episode is (think, search, information)* think answer, with text only inside tags.

    Two forms of a search are valid: ``<think>…</think><search>…</search>``, and the search nested inside an open think,
    ``<think>…<search>…</search>``, which the environment then closes at the start of its observation.

    Differs from the reference, which runs over the decoded text of prompt and episode: here the policy can only write
    think, search and answer, and ``<information>`` counts only where the environment wrote it, as the observation of a
    search; the nested form is accepted; no chat marker is needed (without one the reference calls everything invalid).
    """
    if not outcome.turns:
        return False
    *searches, last = outcome.turns
    answered = last.event == "answer" and _tag_form(last.text) == "answer" and not last.observation.strip()
    return answered and all(_information(turn) is not None for turn in searches)


def _information(turn: TurnRecord) -> str | None:
    """The documents that a well-formed search turn got from the environment; None for any other turn."""
    if turn.event != "search":
        return None
    match _tag_form(turn.text), [part.strip() for part in _TAG.split(turn.observation, maxsplit=4)]:
        case "search", ["", "<information>", documents, "</information>", ""]:
            return documents
        case "nested", ["", "</think>", "", "<information>", documents, "</information>", ""]:
            return documents
    return None


def _tag_form(text: str) -> Literal["search", "nested", "answer"] | None:
    """Which of the three well-formed turns the policy's text is, if any."""
    match _TAG.split(text, maxsplit=5):
        case [before, "<think>", _, "</think>", between, "<search>", _, "</search>", after]:
            form, outside = "search", (before, between, after)
        case [before, "<think>", _, "<search>", _, "</search>", after]:
            form, outside = "nested", (before, after)
        case [before, "<think>", _, "</think>", between, "<answer>", _, "</answer>", after]:
            form, outside = "answer", (before, between, after)
        case _:
            return None
    return None if any(part.strip() for part in outside) else form


@dataclass(frozen=True, slots=True)
class FormatReward:
    """Exact match with partial credit for structure (Search-R1 v0.3, arXiv 2505.15117).

    | | `has_valid_structure` | not |
    |---|---|---|
    | answer right | 1 | 1 - structure |
    | answer wrong | structure (+ retrieval, if an answer was in what a search retrieved) | final |
    | no answer | structure (+ retrieval) | 0 |

    The lower left cell stands for completeness: a valid structure ends with an answer.

    Differs from the reference, which finds an answer in its own prompt and so pays ``final`` to an episode without one,
    and pays ``retrieval`` for whatever stands between information tags, whoever wrote it.

    Raises:
        OptionError: a parameter lies outside [0, 1].
    """

    structure: float = 0.2
    final: float = 0.1
    retrieval: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value <= 1.0:
                raise OptionError(f"expected {field.name} in [0, 1], got {value!r}; do: FormatReward({field.name}=0.1)")

    def __call__(self, outcome: Outcome) -> float:
        """The reward of a finished episode, between 0 and the larger of 1 and structure + retrieval."""
        valid = has_valid_structure(outcome)
        if exact_match(outcome):
            return 1.0 if valid else 1.0 - self.structure
        if valid:
            retrieved = max((subem_score(_information(turn), outcome.answers) for turn in outcome.turns), default=0.0)
            return self.structure + self.retrieval * retrieved
        return 0.0 if outcome.answer is None else self.final
