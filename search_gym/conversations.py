"""A model that speaks text plays the environment: episodes as conversations, many side by side.

The environment's prompt and its observations are the user's parts, the model's turns are its own. A turn is encoded
once, by the environment's codec, so limits count the codec's tokens; what the model has sampled stays with its server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search_gym.completion import Completion, close_tag
from search_gym.episode import Episode
from search_gym.errors import OptionError
from search_gym.questions import Question
from search_gym.rewards import em_score, f1_score, subem_score
from search_gym.tags import closes_turn
from search_gym.task import Task

Converse = Callable[[Sequence[Sequence[str]]], Sequence[Completion]]
"""The model's next part of each conversation, until `TURN_ENDS`; see `EndpointCompleter.converse`."""


@dataclass
class Conversation:
    """An episode and what was said: ``parts`` are the user's and the model's in turn."""

    question_index: int
    episode: Episode
    parts: list[str]
    completions: list[Completion] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    reward: float = 0.0

    @property
    def question(self) -> Question:
        """What is asked."""
        return self.episode.question

    @property
    def answer(self) -> str | None:
        """The answer, None without one."""
        return self.turns[-1]["content"] if self.turns and self.turns[-1]["event"] == "answer" else None


def play(
    task: Task, converse: Converse, question_index: Sequence[int], *, num_slots: int = 8
) -> Iterator[Conversation]:
    """One episode of each question, ``num_slots`` at a time, in the order in which they end.

    All conversations that are open go on together: one call of ``converse``, one search.

    Raises:
        OptionError: no slot. RetrievalError: see `Task.retrieve`. Whatever ``converse`` raises.
    """
    if num_slots < 1:
        raise OptionError(f"expected num_slots >= 1, got {num_slots}")
    waiting = deque(question_index)
    playing: list[Conversation] = []
    while waiting or playing:
        while waiting and len(playing) < num_slots:
            playing.append(_begin(task, waiting.popleft()))
        completions = converse([tuple(one.parts) for one in playing])
        _answer(task, playing, completions)
        yield from (one for one in playing if one.episode.is_finished)
        playing = [one for one in playing if not one.episode.is_finished]


def _begin(task: Task, question_index: int) -> Conversation:
    episode = task.episode(question_index)
    episode.start()
    return Conversation(question_index, episode, [task.prompt_fn(episode.question.text)])


def _answer(task: Task, playing: Sequence[Conversation], completions: Sequence[Completion]) -> None:
    codec = task.codec
    turns = []
    for one, said in zip(playing, completions, strict=True):
        text = close_tag(said.text) if said.finish_reason == "stop" else said.text
        ids = codec.encode(text)
        if not closes_turn(codec.decode(ids)):
            ids = np.append(ids, codec.eos_id)
        turn = one.episode.begin(ids)
        read = ids[: turn.num_consumed]
        one.completions.append(said)
        one.parts.append(text if len(read) == len(ids) else codec.decode(read[read != codec.eos_id]))
        turns.append(turn)
    searching = [one.episode.needs_documents(turn) for one, turn in zip(playing, turns, strict=True)]
    queries = [turn.content for turn, searches in zip(turns, searching, strict=True) if searches]
    found = iter(task.retrieve(queries) if queries else [])
    for one, turn, searches in zip(playing, turns, searching, strict=True):
        ids, one.reward, _, _, one.info = one.episode.finish(turn, next(found) if searches else None)
        observation = codec.decode(ids)
        one.turns.append(
            {"event": turn.event, "content": turn.content, "text": one.parts[-1], "observation": observation}
        )
        if not one.episode.is_finished:
            one.parts.append(observation)


def describe(one: Conversation, *, label: str) -> dict[str, Any]:
    """A JSON-able row about a finished episode, with the metrics of `search_gym.estimates.METRICS`.

    ``sampled_tokens`` counts what the server says it has sampled.
    """
    question, answer = one.question, one.answer
    return {
        "label": label,
        "question_index": one.question_index,
        "question_id": question.question_id,
        "question": question.text,
        "answers": list(question.answers),
        "kind": str(question.metadata.get("kind") or question.metadata.get("type") or "all"),
        "answer": answer,
        "reward": one.reward,
        "em": em_score(answer, question.answers),
        "f1": f1_score(answer, question.answers),
        "subem": subem_score(answer, question.answers),
        "searches": float(one.info["num_searches"]),
        "valid_turns": float(np.mean([turn["event"] != "invalid" for turn in one.turns])),
        "truncated": float(answer is None),
        "sampled_tokens": float(sum(said.num_tokens for said in one.completions)),
        "end_reason": one.info["end_reason"],
        "prompt": one.parts[0],
        "turns": one.turns,
        "completions": [said.text for said in one.completions],
    }
