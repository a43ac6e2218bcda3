"""Chain of thought: reasoning step by step, then the answer, without search (Wei et al. 2022, arXiv 2201.11903)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.prompts import ANSWER_IS, Example, ask, short_answer, take_examples
from agents.baselines.text_agent import Script, answer, complete
from search_gym.completion import Prompt


@dataclass(frozen=True, slots=True)
class ChainOfThought:
    """One completion, one turn: the chain becomes the turn's thought."""

    examples: tuple[Example, ...]

    def prompt(self, question: str) -> str:
        """Instruction, examples with their chains (the paper's figure 1, right), question."""
        shown = "".join(f"{ask(example.question)}Reasoning: {example.chain}\n\n" for example in self.examples)
        return (
            'Answer the question. Reason step by step in one line, and end with "So the answer is:" and a name, a '
            f"number, yes or no.\n\n{shown}{ask(question)}"
        )

    def play(self, question: str) -> Script[NoReturn]:
        """Reason and answer. A chain that names no answer is cut short by asking for it."""
        prompt = Prompt(self.prompt(question), "Reasoning:")
        (chain,) = yield from complete(prompt, stop=["\n"])
        text = chain.text
        if not ANSWER_IS.search(text):
            text = f"{text.rstrip()} So the answer is:"
            (rest,) = yield from complete(Prompt(prompt.message, prompt.reply + text), stop=["\n"])
            text += rest.text
        while True:
            yield from answer(short_answer(text), thought=text)


def make(*, max_searches: int, num_examples: int) -> ChainOfThought:
    """Chain of thought; ``max_searches`` does not matter."""
    return ChainOfThought(take_examples(num_examples))
