"""Search-R1's own prompt, zero-shot: the policy that training starts from (Jin et al. 2025, arXiv 2503.09516, table 1).

The model writes the grammar itself, and what it writes is its turn. With a model in this process, ``agents.evaluate``
plays the same prompt on the sampled ids; this plays it on any endpoint, where there is only text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from agents.baselines.text_agent import Script, complete, write
from search_gym.completion import TURN_ENDS, Prompt, close_tag
from search_gym.tags import search_r1_prompt


@dataclass(frozen=True, slots=True)
class SearchR1:
    """Completion and turn are the same."""

    def prompt(self, question: str) -> str:
        """The prompt of `search_gym.tags.search_r1_prompt`."""
        return search_r1_prompt(question)

    def play(self, question: str) -> Script[NoReturn]:
        """Write turns until the environment ends the episode."""
        reply = ""
        while True:
            prompt = Prompt(self.prompt(question), reply)
            (said,) = yield from complete(prompt, stop=TURN_ENDS)
            text = close_tag(said.text) if said.finish_reason == "stop" else said.text
            reply += text + (yield from write(text))


def make(*, max_searches: int, num_examples: int) -> SearchR1:
    """Search-R1's prompt, which has no examples; the environment's budget stands for ``max_searches``."""
    return SearchR1()
