"""Self-RAG with any language model: retrieve on demand, one candidate a passage, the best-scored segment wins.

Asai et al. 2023 (arXiv 2310.11511), algorithm 1. Their model was trained to write reflection tokens; a model that was
not is asked for each reflection as a choice between lettered options, and the log-probabilities of the letters stand
for those of the tokens. It therefore needs a model that tells log-probabilities. ``self_rag_tokens`` is for released
models. Differs from the paper: segments are chosen one at a time (a beam of 1, not 2), and the short answer that exact
match asks for is taken from the segment that says what the answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from agents.baselines.critique import Weights, normalised, segment_scores
from agents.baselines.prompts import ANSWER_IS, Example, Passage, ask, sentences, short_answer, show, take_examples
from agents.baselines.text_agent import Script, answer, complete, read_documents, score_options, search
from search_gym.completion import Prompt

RETRIEVE = ("yes, a fact is missing", "no, everything that is needed is known")
RELEVANT = ("yes, it helps to answer the question", "no, it is about something else")
SUPPORTED = ("fully, the passage states it", "partially, some of it", "no, the passage does not say it or denies it")
USEFUL = ("useless", "hardly useful", "somewhat useful", "useful", "a perfect reply")


@dataclass(frozen=True, slots=True)
class SelfRAG:
    """Segment by segment: Retrieve?, passages, candidates, their ISREL, ISSUP and ISUSE, the best one."""

    examples: tuple[Example, ...]
    max_searches: int
    weights: Weights = field(default_factory=Weights)

    def prompt(self, question: str) -> str:
        """Instruction, examples, question; the passages come between them in the requests themselves."""
        return self._head() + ask(question)

    def _head(self) -> str:
        shown = "".join(f"{show(e.passages)}{ask(e.question)}Reasoning: {e.chain}\n\n" for e in self.examples)
        return (
            "Answer the question, with the help of the passages above it if there are any. Reason step by step in one "
            'line, one fact a sentence, and end with "So the answer is:" and a name, a number, yes or no.\n\n' + shown
        )

    def play(self, question: str) -> Script[NoReturn]:
        """Write segments until one says what the answer is, and one more than there may be searches at most."""
        segments: list[str] = []
        searches = written = 0
        for _ in range(self.max_searches + 1):
            passages: list[Passage] = []
            if searches < self.max_searches and (yield from self._retrieves(question, segments)):
                query = " ".join([question, *segments[-1:]])  # the paper's (x, y_<t>), with the last segment only
                thought, written = " ".join(segments[written:]), len(segments)
                passages = read_documents((yield from search(query, thought)))
                searches += 1
            segment = yield from self._segment(question, segments, passages)
            if not segment or segment in segments:
                break
            segments.append(segment)
            if ANSWER_IS.search(segment):
                break
        text = " ".join(segments[written:])
        if not ANSWER_IS.search(text):
            prompt = self._reason(question, None, [*segments, "So the answer is:"])
            (said,) = yield from complete(prompt, stop=["\n"])
            text = f"{text} So the answer is:{said.text}".strip()
        while True:
            yield from answer(short_answer(text), thought=text)

    def _retrieves(self, question: str, segments: Sequence[str]) -> Script[bool]:
        reply = " ".join(segments) or "(nothing yet)"
        choice = choose("Must something be looked up to go on with the reply?", RETRIEVE, question, reply)
        (logprobs,) = yield from score_options(choice, options=letters(RETRIEVE))
        return normalised(logprobs)[0] > self.weights.threshold

    def _segment(self, question: str, segments: Sequence[str], passages: Sequence[Passage]) -> Script[str]:
        if not passages:
            (said,) = yield from complete(self._reason(question, None, segments), stop=["\n"])
            return next(sentences(said.text), "")
        prompts = [self._reason(question, passage, segments) for passage in passages]
        said = yield from complete(*prompts, stop=["\n"], logprobs=True)
        candidates = [next(sentences(completion.text), "") for completion in said]
        both = list(zip(passages, candidates, strict=True))
        isrel = yield from score_options(
            *(choose("Does the passage help to answer the question?", RELEVANT, question, "", p) for p in passages),
            options=letters(RELEVANT),
        )
        issup = yield from score_options(
            *(choose("Does the passage support the reply?", SUPPORTED, question, c, p) for p, c in both),
            options=letters(SUPPORTED),
        )
        isuse = yield from score_options(
            *(choose("How useful is the reply?", USEFUL, question, c) for c in candidates), options=letters(USEFUL)
        )
        scores = segment_scores(said, isrel, issup, isuse, self.weights)
        return candidates[max(range(len(scores)), key=lambda i: (bool(candidates[i]), scores[i]))]

    def _reason(self, question: str, passage: Passage | None, segments: Sequence[str]) -> Prompt:
        shown = "" if passage is None else show([passage])
        return Prompt(self._head() + shown + ask(question), " ".join(["Reasoning:", *segments]))


def letters(options: Sequence[str]) -> tuple[str, ...]:
    """The continuations that choose among ``options``: " A", " B" and so on."""
    return tuple(f" {chr(ord('A') + i)}" for i in range(len(options)))


def choose(asked: str, options: Sequence[str], question: str, reply: str, passage: Passage | None = None) -> Prompt:
    """A reflection as a choice: ``asked`` about a question, a reply and a passage, where they are given."""
    shown = "" if passage is None else "Passage. " + show([passage])
    said = f"Reply: {reply}\n" if reply else ""
    listed = "".join(f"{letter.strip()}: {option}\n" for letter, option in zip(letters(options), options, strict=True))
    return Prompt(f"{shown}{ask(question)}{said}\n{asked} Choose a letter.\n{listed}", "Choice:")


def make(*, max_searches: int, num_examples: int) -> SelfRAG:
    """Self-RAG with at most ``max_searches`` searches and the paper's weights."""
    return SelfRAG(take_examples(num_examples), max_searches)
