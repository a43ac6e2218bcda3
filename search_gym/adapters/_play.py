"""What the adapters share: a task that many episodes have in common, and one episode that is played step by step."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

import search_gym  # noqa: F401, registers the environments
from search_gym._background import BackgroundSearch
from search_gym.codec import TokenIds
from search_gym.env import SearchEnv
from search_gym.episode import Episode, StepResult
from search_gym.errors import EpisodeFinishedError, OptionError, RetrievalError
from search_gym.retrievers import Document
from search_gym.tags import Turn, closes_turn
from search_gym.task import Task

TINY = "search_gym/TinyWiki-v0"
Found = list[Document] | RetrievalError

_SHARED: dict[str, SharedTask] = {}


class SharedTask:
    """A `Task` whose episodes search together: queries that come while a search is under way make one call after it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.searcher: BackgroundSearch[Found] = BackgroundSearch(task.retrieve)

    @classmethod
    def of(cls, env_id: str = TINY, options: Mapping[str, Any] | None = None) -> SharedTask:
        """The task of ``gym.make(env_id, **options)``; the same one for the same plain options in this process.

        Raises:
            OptionError: ``env_id`` is no search environment.
        """
        options = dict(options or {})
        try:
            key = json.dumps([env_id, options], sort_keys=True)
        except TypeError:  # objects among the options, which nothing tells apart
            return cls(_make(env_id, options))
        if key not in _SHARED:
            _SHARED[key] = cls(_make(env_id, options))
        return _SHARED[key]


def _make(env_id: str, options: Mapping[str, Any]) -> Task:
    env = gym.make(env_id, **options).unwrapped
    if not isinstance(env, SearchEnv):
        raise OptionError(f"expected the id of a search environment, got {env_id!r}; do: {TINY!r}, for example")
    return env.task


class Play:
    """One episode at a time, of a shared task."""

    def __init__(self, shared: SharedTask) -> None:
        self.shared = shared
        self._episode: Episode | None = None
        self.question_index = -1

    @property
    def task(self) -> Task:
        """What is played."""
        return self.shared.task

    @property
    def episode(self) -> Episode:
        """The current episode.

        Raises:
            EpisodeFinishedError: there is none yet.
        """
        if self._episode is None:
            raise EpisodeFinishedError("expected a started episode, got none; do: reset first")
        return self._episode

    def start(self, question_index: int) -> TokenIds:
        """The prompt (n,) int64 of a new episode.

        Raises:
            OptionError: the index is out of range. PromptError: the question does not fit.
        """
        episode = self.task.episode(question_index)
        prompt = episode.start()
        self._episode, self.question_index = episode, question_index
        return prompt

    def step(self, chunk: TokenIds | list[int]) -> StepResult:
        """Take a chunk of sampled ids; see `SearchEnv.step`."""
        turn = self._begin(chunk)
        found = self.shared.searcher.submit([turn.content]).result() if self.episode.needs_documents(turn) else None
        return self.episode.finish(turn, None if found is None else found[0])

    async def step_async(self, chunk: TokenIds | list[int]) -> StepResult:
        """`step`, while other episodes go on and search along."""
        turn = self._begin(chunk)
        found = None
        if self.episode.needs_documents(turn):
            found = await asyncio.wrap_future(self.shared.searcher.submit([turn.content]))
        return self.episode.finish(turn, None if found is None else found[0])

    def _begin(self, chunk: TokenIds | list[int]) -> Turn:
        ids = chunk if isinstance(chunk, np.ndarray) else np.array(chunk, dtype=np.int64)
        return self.episode.begin(ids)

    def encode_turn(self, text: str) -> TokenIds:
        """A turn that is known as text only: the codec's ids, and an EOS where it closes no search and no answer."""
        codec = self.task.codec
        ids = codec.encode(text)
        return ids if closes_turn(codec.decode(ids)) else np.append(ids, codec.eos_id)

    def decode(self, ids: TokenIds) -> str:
        """The text of ``ids``."""
        return self.task.codec.decode(ids)

    @property
    def loss_mask(self) -> npt.NDArray[np.bool_]:
        """(n,) bool over the transcript; True = sampled by the policy."""
        return self.episode.transcript.loss_mask
