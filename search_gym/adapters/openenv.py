"""OpenEnv [0.10]: the environment as a server that speaks token ids and text, and its client.

    uvicorn --factory search_gym.adapters.openenv:make_app --port 8000

    with SearchClient(base_url="http://localhost:8000").sync() as env:
        result = env.reset(question_index=0)
        result = env.step(SearchAction(token_ids=sampled))     # any chunk of what the policy samples
        state = env.state()                                    # token_ids, loss_mask, info_mask, ...

What consumes OpenEnv servers (TRL, verifiers, SkyRL, AgileRL, NeMo Gym) can use it. Each connection is a session with
an episode of its own; all share questions and retriever, and searches of many sessions are made in one call.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from openenv.core import EnvClient  # pyright: ignore[reportMissingImports]
from openenv.core.client_types import StepResult  # pyright: ignore[reportMissingImports]
from openenv.core.env_server import (  # pyright: ignore[reportMissingImports]
    Action,
    Environment,
    Observation,
    State,
    create_fastapi_app,
)
from openenv.core.env_server.types import EnvironmentMetadata  # pyright: ignore[reportMissingImports]
from pydantic import Field  # pyright: ignore[reportMissingImports]

from search_gym import __version__
from search_gym.adapters._play import TINY, Play, SharedTask
from search_gym.env import choose_question
from search_gym.errors import ActionError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["SearchAction", "SearchClient", "SearchEnvironment", "SearchObservation", "SearchState", "make_app"]

ENV_ID = "SEARCH_GYM_ENV_ID"
"""Environment variable that names the Gymnasium id of `make_app`."""


class SearchAction(Action):
    """Either ``token_ids``, any non-empty chunk of what the policy samples, or the ``text`` of a whole turn.

    Text is encoded by the environment's codec, so the ids in the transcript need not be those that were sampled.
    """

    token_ids: list[int] | None = None
    text: str | None = None


class SearchObservation(Observation):
    """What the environment appended: its ``token_ids`` and their ``text``; ``metadata`` is the info of the step.

    ``done`` is ``terminated or truncated``.
    """

    token_ids: list[int] = Field(default_factory=list)
    text: str = ""
    terminated: bool = False
    truncated: bool = False


class SearchState(State):
    """The transcript so far. ``loss_mask``: True = sampled by the policy; ``info_mask``: True = written by the
    environment after the prompt."""

    question_id: str = ""
    question_index: int = -1
    token_ids: list[int] = Field(default_factory=list)
    loss_mask: list[bool] = Field(default_factory=list)
    info_mask: list[bool] = Field(default_factory=list)


class SearchEnvironment(Environment[SearchAction, SearchObservation, SearchState]):
    """One session: an episode at a time of a task that all sessions share."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, shared: SharedTask | None = None) -> None:
        super().__init__()
        self._play = Play(shared or SharedTask.of())
        self._rng = np.random.default_rng()
        self._episode_id: str | None = None
        self._step_count = 0

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        question_index: int | None = None,
        **kwargs: Any,
    ) -> SearchObservation:
        """Start an episode: of ``question_index``, or of a question that is drawn, reproducibly with ``seed``.

        Raises:
            OptionError: the index is out of range.
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        options = None if question_index is None else {"question_index": question_index}
        index = choose_question(self._rng, self._play.task, options)
        prompt = self._play.start(index)
        self._episode_id, self._step_count = episode_id or str(uuid4()), 0
        question_id = self._play.episode.question.question_id
        metadata = {"question_id": question_id, "question_index": index}
        return SearchObservation(token_ids=prompt.tolist(), text=self._play.decode(prompt), metadata=metadata)

    def step(self, action: SearchAction, timeout_s: float | None = None, **kwargs: Any) -> SearchObservation:
        """Take a chunk of tokens, or a whole turn as text.

        Raises:
            ActionError: neither or both are given, or ids that the codec does not know. EpisodeFinishedError,
            RetrievalError: see `search_gym.SearchEnv.step`.
        """
        token_ids, text = action.token_ids, action.text
        if (token_ids is None) == (text is None):
            raise ActionError("expected either token_ids or text, got both or none; do: token_ids, if you have them")
        chunk = self._play.encode_turn(text) if text is not None else np.array(token_ids, dtype=np.int64)
        ids, reward, terminated, truncated, info = self._play.step(chunk)
        self._step_count += 1
        return SearchObservation(
            token_ids=ids.tolist(),
            text=self._play.decode(ids),
            terminated=terminated,
            truncated=truncated,
            done=terminated or truncated,
            reward=reward,
            metadata=info,
        )

    @property
    def state(self) -> SearchState:
        """The transcript with its masks; empty before the first reset."""
        if self._episode_id is None:
            return SearchState()
        episode = self._play.episode
        return SearchState(
            episode_id=self._episode_id,
            step_count=self._step_count,
            question_id=episode.question.question_id,
            question_index=self._play.question_index,
            token_ids=episode.transcript.token_ids.tolist(),
            loss_mask=episode.transcript.loss_mask.tolist(),
            info_mask=episode.transcript.info_mask.tolist(),
        )

    def get_metadata(self) -> EnvironmentMetadata:
        """Name, description and version."""
        description = "Answer questions by reasoning and searching, with exact token provenance"
        return EnvironmentMetadata(name="search_gym", description=description, version=__version__)


class SearchClient(EnvClient[SearchAction, SearchObservation, SearchState]):
    """A session on a server of `make_app`; asynchronous, or ``.sync()``."""

    def _step_payload(self, action: SearchAction) -> dict[str, Any]:
        return action.model_dump(exclude_none=True)

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[SearchObservation]:
        done, reward = bool(payload.get("done")), payload.get("reward")
        observation = SearchObservation(**payload["observation"], done=done, reward=reward)
        return StepResult(observation=observation, reward=reward, done=done, metadata=observation.metadata)

    def _parse_state(self, payload: dict[str, Any]) -> SearchState:
        return SearchState(**payload)


def make_app(
    env_id: str | None = None, options: Mapping[str, Any] | None = None, *, max_concurrent_envs: int = 256
) -> FastAPI:
    """The FastAPI application of ``gym.make(env_id, **options)``, for at most so many sessions at a time.

    Without ``env_id`` the environment variable ``SEARCH_GYM_ENV_ID`` counts, then TinyWiki.
    """
    shared = SharedTask.of(env_id or os.environ.get(ENV_ID) or TINY, options)
    return create_fastapi_app(
        functools.partial(SearchEnvironment, shared),
        SearchAction,
        SearchObservation,
        max_concurrent_envs=max_concurrent_envs,
        env_name="search_gym",
        state_cls=SearchState,
    )
