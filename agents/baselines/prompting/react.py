"""ReAct: thoughts, actions and observations in turn (Yao et al. 2022, arXiv 2210.03629).

The layout of examples and actions is that of the paper's appendix C.1, without its action Lookup, as a retriever gives
passages and no page to look through. A thought without an action is continued with "Action i:", as the authors'
code does. A turn whose action cannot be read is an invalid turn of the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.prompts import Example, ask, take_examples
from agents.baselines.text_agent import Script, answer, complete, search, write
from search_gym.completion import Prompt
from search_gym.tags import neutralise

_ACTION = re.compile(r"\s*(search|finish)\s*\[(.*)\]", re.IGNORECASE)
_FRAME = re.compile(r"</?think>|</?information>")


@dataclass(frozen=True, slots=True)
class ReAct:
    """As many turns as the model takes; the environment bounds them."""

    examples: tuple[Example, ...]

    def prompt(self, question: str) -> str:
        """Instruction, examples as traces, question."""
        return (
            "Solve a question in turns of Thought, Action and Observation. A Thought says what is known and what is "
            "missing. An Action is one of two:\n"
            "Search[query] looks the query up in an encyclopedia and gives the passages that fit best.\n"
            "Finish[answer] ends with the answer: a name, a number, yes or no.\n\n"
            f"{''.join(trace(example) for example in self.examples)}{ask(question)}"
        )

    def play(self, question: str) -> Script[NoReturn]:
        """Think, act, observe, and again."""
        message, reply, number = self.prompt(question), "", 0
        while True:
            number += 1
            reply += f"Thought {number}:"
            (said,) = yield from complete(Prompt(message, reply), stop=["\nObservation", "\nQuestion:"])
            thought, named, action = said.text.partition(f"\nAction {number}:")
            if not named:
                thought = thought.strip().partition("\n")[0]
                (said,) = yield from complete(Prompt(message, f"{reply} {thought}\nAction {number}:"), stop=["\n"])
                action = said.text
            action = action.strip().partition("\n")[0]
            observation = yield from self._act(thought.strip(), action)
            seen = " ".join(_FRAME.sub("", observation).split())
            reply += f" {thought.strip()}\nAction {number}: {action}\nObservation {number}: {seen}\n"

    def _act(self, thought: str, action: str) -> Script[str]:
        found = _ACTION.match(action)
        if found is None:
            return (yield from write(neutralise(f"{thought}\n{action}")))
        if found[1].lower() == "search":
            return (yield from search(found[2], thought))
        return (yield from answer(found[2], thought))


def trace(example: Example) -> str:
    """The worked example as a ReAct trace."""
    lines = []
    for number, hop in enumerate(example.hops, 1):
        title, text = hop.passage
        lines += [f"Thought {number}: {hop.need}", f"Action {number}: Search[{hop.query}]"]
        lines += [f'Observation {number}: Doc 1(Title: "{title}") {text}']
    number = len(example.hops) + 1
    conclusion = " ".join(filter(None, [example.hops[-1].finding, example.conclusion]))
    lines += [f"Thought {number}: {conclusion} So the answer is {example.answer}."]
    lines += [f"Action {number}: Finish[{example.answer}]"]
    return ask(example.question) + "\n".join(lines) + "\n\n"


def make(*, max_searches: int, num_examples: int) -> ReAct:
    """ReAct; the environment's budget of turns stands for ``max_searches``."""
    return ReAct(take_examples(num_examples))
