"""verifiers [0.4]: the environment as a taskset and an ``Env`` in which any agent plays.

verifiers finds both by the name of a module of yours that exports them, ``search_qa.py``:

    from search_gym.adapters.verifiers import SearchQAEnv, SearchTaskset

    __all__ = ["SearchQAEnv", "SearchTaskset"]

and then

    eval search-qa -m MODEL --client.base-url http://localhost:8000/v1
    eval search-qa -m MODEL --env.taskset.env-id search_gym/SearchQA-v0 --env.taskset.options '{"questions": "nq"}'

verifiers speaks text, turn by turn, and keeps its own trace: which tokens were sampled is what its training client
recorded, nothing that was sampled is encoded again there, and its loss mask comes from there. Documents, corrections
and the reward come from here. Let the model stop at ``</search>`` and ``</answer>``: with or without the tag in the
reply, the turn counts as closed; what a turn says after them is not part of the episode here. verifiers strips white
space at both ends of a reply, and so does this environment see it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import verifiers.v1 as vf  # pyright: ignore[reportMissingImports]
from pydantic import Field  # pyright: ignore[reportMissingImports]
from verifiers.v1.runtimes.subprocess import SubprocessConfig  # pyright: ignore[reportMissingImports]

from search_gym.adapters._play import TINY, Play, SharedTask
from search_gym.completion import close_tag

__all__ = ["SearchQAEnv", "SearchTaskset"]


class SearchTaskData(vf.TaskData):
    """One question of the environment."""

    question_index: int
    answers: list[str]


class SearchTask(vf.Task[SearchTaskData]):
    """The prompt of a question; the reward comes from the environment that plays it."""


class SearchTasksetConfig(vf.TasksetConfig):
    """Which environment: ``gym.make(env_id, **options)``."""

    env_id: str = TINY
    options: dict[str, Any] = Field(default_factory=dict)


class SearchTaskset(vf.Taskset[SearchTask, SearchTasksetConfig]):
    """A task for each question."""

    def load(self) -> Iterable[SearchTask]:
        """The questions, in order."""
        task = SharedTask.of(self.config.env_id, self.config.options).task
        for index, question in enumerate(task.questions):
            data = SearchTaskData(
                id=question.question_id,
                prompt=task.prompt_fn(question.text),
                question_index=index,
                answers=list(question.answers),
            )
            yield SearchTask(data, self.config.task)


class SearchQAConfig(vf.EnvConfig):
    """The one agent, ``player``: by default a chat without tools, on this machine."""

    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"}, runtime=SubprocessConfig())


class SearchQAEnv(vf.Env[SearchQAConfig]):
    """An episode: the player writes turns, the environment answers as its user until the episode ends.

    The trace gets the reward ``"reward"`` and the metrics ``num_searches``, ``num_turns`` and ``truncated``. Episodes
    that are played at the same time search in one call.
    """

    async def run(self, task: Any, agents: Any) -> None:
        """Play ``task`` once. An agent that ends early, by its own limits, leaves an episode without reward."""
        config = self.taskset.config
        play = Play(SharedTask.of(config.env_id, config.options))
        play.start(task.data.question_index)
        async with agents.player.interaction(task) as chat:
            segment = await chat.turn()
            while not segment.terminated:
                ids = play.encode_turn(close_tag(segment.last_reply))
                observation, reward, terminated, truncated, info = await play.step_async(ids)
                if terminated or truncated:
                    chat.trace.record_reward("reward", reward)
                    chat.trace.record_metric("num_searches", float(info["num_searches"]))
                    chat.trace.record_metric("num_turns", float(info["num_turns"]))
                    chat.trace.record_metric("truncated", float(truncated))
                    break
                segment = await chat.turn(play.decode(observation))
            else:
                chat.trace.record_reward("reward", 0.0)
