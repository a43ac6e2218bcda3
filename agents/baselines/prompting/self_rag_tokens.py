"""Self-RAG with a released model, which writes reflection tokens (Asai et al. 2023, arXiv 2310.11511).

The short-form inference of the authors' code: one segment; retrieve if the probability of ``[Retrieval]`` is above the
threshold; for each passage the model rates its relevance, writes a candidate, and rates its support and utility; the
highest score wins. The model must run in this process, as ``--model selfrag/selfrag_llama2_7b`` does, because a prompt
holds special tokens. Differs from the authors' code: after ``[No Retrieval]`` the environment is not searched and the
reply is taken as it is there, but ISSUP and ISUSE are scored right after the candidate, even where the model would have
written other tokens there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from agents.baselines.critique import Weights, normalised, segment_scores
from agents.baselines.prompts import Passage, short_answer
from agents.baselines.text_agent import Script, answer, complete, read_documents, score_options, search
from search_gym.completion import Prompt

RETRIEVE = ("[Retrieval]", "[No Retrieval]")
RELEVANT = ("[Relevant]", "[Irrelevant]")
SUPPORTED = ("[Fully supported]", "[Partially supported]", "[No support / Contradictory]")
USEFUL = tuple(f"[Utility:{rating}]" for rating in range(1, 6))
PARAGRAPH = ("<paragraph>", "</paragraph>")
CONTINUE = "[Continue to Use Evidence]"
CONTROL = (*RETRIEVE, *RELEVANT, *SUPPORTED, *USEFUL, *PARAGRAPH, CONTINUE)
_STOP = (*RETRIEVE, *SUPPORTED, *USEFUL, CONTINUE)
_CONTROL = re.compile("|".join(map(re.escape, CONTROL)))


@dataclass(frozen=True, slots=True)
class SelfRAGTokens:
    """At most one search, one segment."""

    max_searches: int
    weights: Weights = field(default_factory=Weights)

    def prompt(self, question: str) -> str:
        """The instruction layout that the released models were trained with."""
        return f"### Instruction:\n{plain(question.strip())}\n\n### Response:\n"

    def play(self, question: str) -> Script[NoReturn]:
        """Decide on a search, write candidates, answer with the best."""
        (logprobs,) = yield from score_options(self._prompt(question, ""), options=RETRIEVE)
        passages: list[Passage] = []
        if self.max_searches and normalised(logprobs)[0] > self.weights.threshold:
            passages = read_documents((yield from search(question)))
        if passages:
            text = yield from self._best(question, passages)
        else:
            (said,) = yield from complete(self._prompt(question, "[No Retrieval]"), stop=_STOP)
            text = said.text
        while True:
            yield from answer(short_answer(_CONTROL.sub("", text)))

    def _best(self, question: str, passages: Sequence[Passage]) -> Script[str]:
        replies = [f"[Retrieval]{PARAGRAPH[0]}{plain(title)}\n{plain(text)}{PARAGRAPH[1]}" for title, text in passages]
        isrel = yield from score_options(*self._prompts(question, replies), options=RELEVANT)
        replies = [reply + likeliest(RELEVANT, found) for reply, found in zip(replies, isrel, strict=True)]
        said = yield from complete(*self._prompts(question, replies), stop=_STOP, logprobs=True)
        replies = [reply + completion.text for reply, completion in zip(replies, said, strict=True)]
        issup = yield from score_options(*self._prompts(question, replies), options=SUPPORTED)
        replies = [reply + likeliest(SUPPORTED, found) for reply, found in zip(replies, issup, strict=True)]
        isuse = yield from score_options(*self._prompts(question, replies), options=USEFUL)
        scores = segment_scores(said, isrel, issup, isuse, self.weights)
        return said[scores.index(max(scores))].text

    def _prompts(self, question: str, replies: Sequence[str]) -> list[Prompt]:
        return [self._prompt(question, reply) for reply in replies]

    def _prompt(self, question: str, reply: str) -> Prompt:
        return Prompt(self.prompt(question), reply, chat=False, control=CONTROL)


def likeliest(options: Sequence[str], logprobs: Sequence[float]) -> str:
    """The option with the highest of ``logprobs``, the first of equals."""
    return options[max(range(len(options)), key=lambda i: logprobs[i])]


def plain(text: str) -> str:
    """``text``, in which nothing is a reflection token: its brackets become ‹ › if one is spelled in it."""
    return text.translate(str.maketrans("[]<>", "‹›‹›")) if _CONTROL.search(text) else text


def make(*, max_searches: int, num_examples: int) -> SelfRAGTokens:
    """Self-RAG for a released model, which needs no examples; with the paper's weights."""
    return SelfRAGTokens(max_searches)
