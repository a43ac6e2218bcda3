"""Static RAG: one search with the question itself, then the answer from what it found.

Retrieval-augmented generation (Lewis et al. 2020, arXiv 2005.11401) with the passages in the prompt, which is what the
row "RAG" of Search-R1 stands for (arXiv 2503.09516, table 2). Trained counterpart: ``agents.baselines.static_rag``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.prompts import Example, ask, short_answer, show, take_examples
from agents.baselines.text_agent import Script, answer, complete, read_documents, search
from search_gym.completion import Prompt

INSTRUCTION = (
    "Answer the question with a name, a number, yes or no, and nothing else. The passages above it may help; some of "
    "them may have nothing to do with it.\n\n"
)


@dataclass(frozen=True, slots=True)
class StaticRAG:
    """One search, one completion."""

    examples: tuple[Example, ...]

    def prompt(self, question: str) -> str:
        """Instruction, examples, question; the passages come between them in the request itself."""
        return self._head() + ask(question)

    def _head(self) -> str:
        shown = "".join(f"{show(e.passages)}{ask(e.question)}Answer: {e.answer}\n\n" for e in self.examples)
        return INSTRUCTION + shown

    def play(self, question: str) -> Script[NoReturn]:
        """Search for the question, read, answer."""
        passages = read_documents((yield from search(question)))
        prompt = Prompt(self._head() + show(passages) + ask(question), "Answer:")
        (completion,) = yield from complete(prompt, stop=["\n"])
        while True:
            yield from answer(short_answer(completion.text))


def make(*, max_searches: int, num_examples: int) -> StaticRAG:
    """Static RAG; it searches once whatever ``max_searches`` allows."""
    return StaticRAG(take_examples(num_examples))
