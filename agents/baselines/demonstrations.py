"""Demonstrations: episodes that a program plays in the environment, in the form of each baseline.

A program knows how to reason; a model that cannot follow a prompt learns the form from what the program shows. What the
program writes enters the environment as a policy's turns do, so a demonstration is a transcript like any other: its
action spans are what is learned from, and prompts and documents are the environment's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from agents.baselines.no_search import no_search_envs
from agents.baselines.static_rag import static_rag_envs, static_rag_max_envs
from agents.tasks import MakeEnvs, make_envs
from search_gym import Question, SearchVectorEnv, Transcript
from search_gym.errors import OptionError
from search_gym.scripted import UNKNOWN, OraclePolicy, ScriptedPolicy, read_known, write_turn
from search_gym.tinywiki import sentence


@dataclass(frozen=True)
class Form:
    """How a baseline's episodes look: the environment they run in, and a policy that plays them right."""

    make_envs: MakeEnvs
    policy: ScriptedPolicy
    about: str


class AnswerOnly:
    """Answers at once and does not reason."""

    def act(self, question: Question, observations: Sequence[str]) -> str:
        return f"<answer> {question.answers[0]} </answer>"


class ChainOfThought:
    """Writes down what each step finds, then the answer, and looks nothing up (Wei et al. 2022, arXiv 2201.11903)."""

    def act(self, question: Question, observations: Sequence[str]) -> str:
        steps = " ".join(f"The {relation} is {object}." for _, relation, object in chain_of(question))
        return f"<think> {steps} </think> <answer> {question.answers[0]} </answer>"


class SearchThenAnswer:
    """Searches once with the question itself, then answers; needs nothing but a question and its answer."""

    def act(self, question: Question, observations: Sequence[str]) -> str:
        if observations:
            return write_turn("answer", question.answers[0])
        return f"<think> I need to find </think> <search> {question.text} </search>"


class InterleavedRetrieval:
    """Searches with the question, then with each sentence of its chain of thought (IRCoT, Trivedi et al. 2022,
    arXiv 2212.10509, section 3.1), then reads all documents and answers.

    A sentence states a step as the documents show it. Before they do it is a guess, as a language model would make
    one, and as a query it finds the document that corrects it. A step that stays unseen ends in "unknown".
    """

    def act(self, question: Question, observations: Sequence[str]) -> str:
        if not observations:
            return f"<think> I need to find </think> <search> {question.text} </search>"
        stated: set[tuple[str, str]] = set()
        thought = None
        for seen in range(1, len(observations) + 1):
            thought = self._thought(question, observations[:seen], stated)
        if thought is None:
            known = read_known(observations)
            subject = chain_of(question)[0][0]
            for _, relation, _ in chain_of(question):
                subject = known.get((subject, relation), UNKNOWN)
            return write_turn("answer", subject)
        return f"<think> {thought} </think> <search> {thought} </search>"

    def _thought(self, question: Question, observations: Sequence[str], stated: set[tuple[str, str]]) -> str | None:
        """The next sentence, which joins ``stated``; None when every step is stated, or one of them stays unseen."""
        known = read_known(observations)
        subject = chain_of(question)[0][0]
        for _, relation, _ in chain_of(question):
            step = subject, relation
            if step not in stated:
                stated.add(step)
                return sentence(subject, relation, known.get(step) or list(known.values())[-1])
            if step not in known:
                return None
            subject = known[step]
        return None


FormName = Literal["direct", "cot", "static-rag", "static-rag-max", "search-once", "react", "ircot"]

FORMS: Mapping[FormName, Form] = {
    "direct": Form(no_search_envs, AnswerOnly(), "question, answer"),
    "cot": Form(no_search_envs, ChainOfThought(), "question, a chain of thought, answer"),
    "static-rag": Form(static_rag_envs, AnswerOnly(), "question with the documents that it finds, answer"),
    "static-rag-max": Form(static_rag_max_envs, AnswerOnly(), "the same with as many documents as an agent may see"),
    "search-once": Form(make_envs, SearchThenAnswer(), "a search with the question, answer"),
    "react": Form(make_envs, OraclePolicy(), "a thought and a search for each step, answer"),
    "ircot": Form(make_envs, InterleavedRetrieval(), "searches with the question and with each thought, answer"),
}


def chain_of(question: Question) -> list[tuple[str, str, str]]:
    """The (subject, relation, object) triples that lead to the answer, each from the object of the one before.

    Raises:
        OptionError: the question does not tell them, or they do not form a chain.
    """
    chain = [(subject, relation, object) for subject, relation, object in question.metadata.get("chain", ())]
    if not chain or any(fact[2] != following[0] for fact, following in pairwise(chain)):
        raise OptionError(
            f"expected questions whose metadata holds a chain of facts, got {question.question_id!r} without one; "
            "do: ask 1-hop to 4-hop questions of TinyWiki, or use a form that needs only answers, such as direct, "
            "static-rag or search-once"
        )
    return chain


def demonstrate(envs: SearchVectorEnv, policy: ScriptedPolicy, question_index: Sequence[int]) -> list[Transcript]:
    """The transcripts of ``policy`` on these questions, without those that earn no reward or have an invalid turn.

    Raises:
        OptionError: none earns a reward.
    """
    transcripts = []
    for start in range(0, len(question_index), envs.num_envs):
        transcripts += _play(envs, policy, question_index[start : start + envs.num_envs])
    if not transcripts:
        raise OptionError(
            f"expected demonstrations that are rewarded, got none for {len(question_index)} questions; do: raise "
            "max_turn_tokens or max_context_tokens until such a turn fits, or use another form"
        )
    return transcripts


def _play(envs: SearchVectorEnv, policy: ScriptedPolicy, question_index: Sequence[int]) -> list[Transcript]:
    """Every slot plays; where there are fewer questions than slots, some are played twice and kept once."""
    envs.reset(options={"question_index": np.resize(np.asarray(question_index, dtype=np.int64), envs.num_envs)})
    codec = envs.task.codec
    observed: list[list[str]] = [[] for _ in range(envs.num_envs)]
    rewards = np.zeros(envs.num_envs)
    has_ended, is_valid = np.zeros(envs.num_envs, dtype=np.bool_), np.ones(envs.num_envs, dtype=np.bool_)
    nothing = np.zeros(0, dtype=np.int64)
    while not has_ended.all():
        actions = [nothing] * envs.num_envs
        for slot in np.flatnonzero(~has_ended):
            actions[slot] = codec.encode(policy.act(envs.episodes[slot].question, observed[slot]))
        observations, step_rewards, terminated, truncated, infos = envs.step(actions)
        for slot in np.flatnonzero(~has_ended):
            observed[slot].append(codec.decode(observations[slot]))
            is_valid[slot] &= infos["event"][slot] in ("search", "answer")
        rewards += step_rewards
        has_ended = terminated | truncated
    return [envs.transcripts[slot] for slot in range(len(question_index)) if rewards[slot] > 0 and is_valid[slot]]
