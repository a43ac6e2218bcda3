"""Reflection tokens and the critic of Self-RAG (Asai et al. 2023, arXiv 2310.11511), in the words of this environment.

A turn of the policy holds one segment and what the policy thinks of it, each judgement as "yes" or "no" at a fixed
place, so that any vocabulary will do::

    <think> RETRIEVE </think> <search> the question </search>
    <think> RELEVANT segment SUPPORTED USEFUL RETRIEVE </think> <search> the segment </search>
    <think> RELEVANT segment SUPPORTED USEFUL RETRIEVE </think> <answer> the answer </answer>

The first turn has seen nothing yet. Every later one has seen one document, the last that was found.

Differs from the reference: a judgement is binary (the paper grades support in three steps and usefulness in five), and
the critic that annotates the training data is a program, because in this world one can know. As in the paper, a search
is made with what has been written last; here the policy writes it out, because only its own tokens can search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from agents.baselines.demonstrations import chain_of
from search_gym import Document, Question, Transcript
from search_gym.errors import OptionError, RetrievalError
from search_gym.rewards import subem_score
from search_gym.scripted import UNKNOWN
from search_gym.task import Task
from search_gym.tinywiki import read_facts


class Critique(NamedTuple):
    """What is thought of a segment, and whether more has to be looked up after it."""

    relevant: bool
    supported: bool
    useful: bool
    retrieve: bool


class Segment(NamedTuple):
    """One statement and its critique; ``answer`` is what it comes to if nothing more has to be looked up."""

    statement: str
    critique: Critique
    answer: str


def first_turn(question: Question) -> str:
    """Decides to retrieve, which in a world that nobody knows is always right."""
    return f"<think> yes </think> <search> {question.text} </search>"


def write_segment(segment: Segment) -> str:
    """The text of a turn."""
    relevant, supported, useful, retrieve = ("yes" if judgement else "no" for judgement in segment.critique)
    action = f"<search> {segment.statement} </search>" if segment.critique.retrieve else answer_turn(segment.answer)
    return f"<think> {relevant} {segment.statement} {supported} {useful} {retrieve} </think> {action}"


def answer_turn(answer: str) -> str:
    """The action that answers."""
    return f"<answer> {answer} </answer>"


class Writer:
    """Plays one question: states what a document shows of the next step, and judges that as the critic does.

    Questions with a chain of facts take as many supported statements as the chain has facts; other questions take one,
    the answer. What a document does not show is "unknown" and judged unsupported. A statement is useful if it is about
    what the question asks for, and more has to be looked up until one is useful and supported.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self._chain = chain_of(question) if "chain" in question.metadata else []
        self._step = 0

    def read(self, document: Document | None) -> Segment:
        """The segment after ``document``, None where a search found nothing."""
        statement, answer, supported = self._state(document)
        useful = self._step >= len(self._chain) - 1
        critique = Critique(supported, supported, useful, retrieve=not (supported and useful))
        self._step += supported
        return Segment(statement, critique, answer)

    def shows(self, document: Document) -> bool:
        """Whether ``document`` states the next step, so that it is relevant."""
        return self._state(document)[2]

    def _state(self, document: Document | None) -> tuple[str, str, bool]:
        """The statement, the answer that it amounts to, and whether ``document`` supports it."""
        if not self._chain:
            answer = self.question.answers[0]
            shown = document is not None and subem_score(f"{document.title} {document.text}", (answer,)) == 1.0
            return (answer, answer, True) if shown else (UNKNOWN, UNKNOWN, False)
        subject, relation, object = self._chain[min(self._step, len(self._chain) - 1)]
        facts = read_facts(document.text) if document is not None else []
        shown = (subject, relation, object) in facts
        value = object if shown else UNKNOWN
        return f"{relation} of {subject} is {value}", value, shown


def choose(writer: Writer, documents: Sequence[Document], rng: np.random.Generator) -> list[Document]:
    """The document of ``documents`` to show: half of the time one that is relevant if there is any, else any of them.

    The list is empty where nothing was found.
    """
    relevant = [document for document in documents if writer.shows(document)]
    pool = relevant if relevant and rng.random() < 0.5 else documents
    return [pool[int(rng.integers(len(pool)))]] if pool else []


def search(task: Task, queries: Sequence[str]) -> list[list[Document]]:
    """The documents of each query, from one call of the retriever.

    Raises:
        RetrievalError: the retriever failed; nothing could be judged then.
    """
    found: list[list[Document]] = []
    for documents in task.retrieve(queries) if queries else ():
        if isinstance(documents, RetrievalError):
            raise documents
        found.append(documents)
    return found


def demonstrate(task: Task, question_index: Iterable[int], seed: int | tuple[int, ...]) -> list[Transcript]:
    """Annotated episodes of these questions that end right, each document chosen from ``task.top_k`` that were found.

    Raises:
        OptionError: none ends right.
    """
    rng = np.random.default_rng(seed)
    episodes = {i: task.episode(i) for i in question_index}
    writers = {i: Writer(episode.question) for i, episode in episodes.items()}
    texts = {i: first_turn(episode.question) for i, episode in episodes.items()}
    rewards = dict.fromkeys(episodes, 0.0)
    for episode in episodes.values():
        episode.start()
    while texts:
        turns = {i: episodes[i].begin(task.codec.encode(text)) for i, text in texts.items()}
        searching = [i for i, turn in turns.items() if episodes[i].needs_documents(turn)]
        found = dict(zip(searching, search(task, [turns[i].content for i in searching]), strict=True))
        texts = {}
        for i, turn in turns.items():
            shown = choose(writers[i], found[i], rng) if i in found else None
            _, rewards[i], terminated, truncated, _ = episodes[i].finish(turn, shown)
            if not (terminated or truncated):
                texts[i] = write_segment(writers[i].read(shown[0] if shown else None))
    kept = [episode.transcript for i, episode in episodes.items() if rewards[i] > 0]
    if not kept:
        raise OptionError(
            f"expected annotated episodes that end right, got none of {len(episodes)}; do: raise max_turn_tokens, "
            "max_turns or the number of documents"
        )
    return kept
