"""Direct inference: the answer at once, without reasoning or search; what the model has memorised.

The few-shot question-and-answer prompt is that of Brown et al. 2020 (arXiv 2005.14165, section 2); in the tables of
Search-R1 (arXiv 2503.09516, table 2) it is the row "Direct Inference".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.prompts import Example, ask, short_answer, take_examples
from agents.baselines.text_agent import Script, answer, complete
from search_gym.completion import Prompt


@dataclass(frozen=True, slots=True)
class Direct:
    """One completion, one turn."""

    examples: tuple[Example, ...]

    def prompt(self, question: str) -> str:
        """Instruction, examples, question."""
        shown = "".join(f"{ask(example.question)}Answer: {example.answer}\n\n" for example in self.examples)
        return f"Answer the question with a name, a number, yes or no, and nothing else.\n\n{shown}{ask(question)}"

    def play(self, question: str) -> Script[NoReturn]:
        """Answer."""
        (completion,) = yield from complete(Prompt(self.prompt(question), "Answer:"), stop=["\n"])
        while True:
            yield from answer(short_answer(completion.text))


def make(*, max_searches: int, num_examples: int) -> Direct:
    """Direct inference; ``max_searches`` does not matter."""
    return Direct(take_examples(num_examples))
