"""IRCoT: retrieval interleaved with a chain of thought (Trivedi et al. 2022, arXiv 2212.10509).

Section 3.1: retrieve with the question; then, in turn, write the next sentence of the chain from all passages so far,
and retrieve with that sentence; stop at a sentence with "answer is" or when the searches are used up. Then a reader
(section 3.2) answers from all passages, here with a chain of thought, the paper's better one for large models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.prompts import (
    ANSWER_IS,
    Example,
    Passage,
    ask,
    sentences,
    short_answer,
    show,
    take_examples,
)
from agents.baselines.text_agent import Script, answer, complete, read_documents, search
from search_gym.completion import Prompt

MAX_PASSAGES = 15
"""Passages that are kept, the paper's number; once it is reached no more are searched for."""


@dataclass(frozen=True, slots=True)
class IRCoT:
    """A search with the question, then one with each sentence of the chain, at most ``max_searches`` in all."""

    examples: tuple[Example, ...]
    max_searches: int

    def prompt(self, question: str) -> str:
        """Instruction, examples, question; the passages come between them in the requests themselves."""
        return self._head() + ask(question)

    def _head(self) -> str:
        shown = "".join(f"{show(e.passages)}{ask(e.question)}Reasoning: {e.chain}\n\n" for e in self.examples)
        return (
            "Answer the question from the passages above it. Reason step by step in one line, one fact a sentence, and "
            f'end with "So the answer is:" and a name, a number, yes or no.\n\n{shown}'
        )

    def play(self, question: str) -> Script[NoReturn]:
        """Retrieve and reason in turn, then read."""
        passages: dict[Passage, None] = {}
        chain: list[str] = []
        query, found_answer, searches = question, False, 0
        while not found_answer and searches < self.max_searches and len(passages) < MAX_PASSAGES:
            observation = yield from search(query)
            searches += 1
            passages |= dict.fromkeys(read_documents(observation))
            (said,) = yield from complete(self._reason(question, passages, chain), stop=["\n"])
            new = next(sentences(said.text), "")
            if not new or new in chain:
                break
            chain.append(new)
            query, found_answer = new, bool(ANSWER_IS.search(new))
        (read,) = yield from complete(self._reason(question, passages, []), stop=["\n"])
        text = read.text
        if not ANSWER_IS.search(text):
            text = f"{text.rstrip()} So the answer is:"
            (rest,) = yield from complete(self._reason(question, passages, [text.strip()]), stop=["\n"])
            text += rest.text
        while True:
            yield from answer(short_answer(text), thought=text)

    def _reason(self, question: str, passages: dict[Passage, None], chain: list[str]) -> Prompt:
        kept = list(passages)[:MAX_PASSAGES]
        return Prompt(self._head() + show(kept) + ask(question), " ".join(["Reasoning:", *chain]))


def make(*, max_searches: int, num_examples: int) -> IRCoT:
    """IRCoT with at most ``max_searches`` searches, that with the question included."""
    return IRCoT(take_examples(num_examples), max_searches)
