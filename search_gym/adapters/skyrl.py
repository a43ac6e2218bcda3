"""SkyRL-gym [0.4]: the environment as a ``BaseTextEnv``.

    import skyrl_gym
    from search_gym.adapters.skyrl import dataset, register

    register()
    rows = dataset()                          # prompt, env_class and question_index of every question
    env = skyrl_gym.make("search_gym", env_config=None, extras={"question_index": 0})
    prompt, _ = env.init(rows[0]["prompt"])

SkyRL hands over the text of a turn and keeps the sampled ids itself, so its loss mask is its own: the reward, the
documents and the end of the episode come from here, and nothing that it sampled is encoded again on its side. Have its
generator stop at ``</search>`` and ``</answer>`` and keep the stop string: what a turn says after them is not part of
the episode here, but would be trained on there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import skyrl_gym  # pyright: ignore[reportMissingImports]
from skyrl_gym.envs.base_text_env import (  # pyright: ignore[reportMissingImports]
    BaseTextEnv,
    BaseTextEnvStepOutput,
    ConversationType,
)

from search_gym.adapters._play import TINY, Play, SharedTask
from search_gym.errors import OptionError

__all__ = ["STOP", "SearchTextEnv", "dataset", "register"]

STOP = ("</search>", "</answer>")
"""What a generator has to stop at, and to keep."""


class SearchTextEnv(BaseTextEnv):
    """One episode. ``extras["question_index"]`` chooses the question.

    ``env_config`` may be a mapping with ``env_id`` and ``options`` (those of ``gym.make``), as SkyRL's configuration
    gives it; where it says nothing, ``env_id`` and ``options`` count.

    Raises:
        OptionError: no question index.
    """

    def __init__(
        self,
        env_config: Mapping[str, Any] | None = None,
        extras: Mapping[str, Any] | None = None,
        *,
        env_id: str = TINY,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        config = dict(env_config or {})
        self._play = Play(SharedTask.of(config.get("env_id", env_id), config.get("options", options)))
        extras = extras or {}
        if "question_index" not in extras:
            raise OptionError(
                f"expected extras with 'question_index', got {sorted(extras)}; do: take rows of dataset()"
            )
        self._question_index = int(extras["question_index"])
        self.max_turns = self._play.task.limits.max_turns + 1
        self._metrics: dict[str, Any] = {}

    def init(self, prompt: ConversationType) -> tuple[ConversationType, dict[str, Any]]:
        """The environment's own prompt, as one user message, whatever ``prompt`` says."""
        self._play.start(self._question_index)
        self.turns, self._metrics = 0, {}
        question = self._play.episode.question
        return _prompt(self._play, question.text), {"question_id": question.question_id}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Take a turn with this text."""
        ids, reward, terminated, truncated, info = self._play.step(self._play.encode_turn(action))
        self.turns += 1
        done = terminated or truncated
        if done:
            self._metrics = {
                "reward": reward,
                "answered": float(terminated),
                "searches": float(info["num_searches"]),
                "turns": float(info["num_turns"]),
            }
        observations = [{"role": "user", "content": self._play.decode(ids)}] if len(ids) else []
        return BaseTextEnvStepOutput(observations=observations, reward=reward, done=done, metadata=info)

    def get_metrics(self) -> dict[str, Any]:
        """Reward, whether it was answered, searches and turns of a finished episode."""
        return dict(self._metrics)


def _prompt(play: Play, question: str) -> ConversationType:
    return [{"role": "user", "content": play.task.prompt_fn(question)}]


def register(name: str = "search_gym", *, env_id: str = TINY, options: Mapping[str, Any] | None = None) -> None:
    """Make ``gym.make(env_id, **options)`` known to SkyRL under ``name``."""
    kwargs = {"env_id": env_id, "options": dict(options or {})}
    skyrl_gym.register(id=name, entry_point="search_gym.adapters.skyrl:SearchTextEnv", kwargs=kwargs)


def dataset(
    name: str = "search_gym", *, env_id: str = TINY, options: Mapping[str, Any] | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """A row for each question, or the first ``limit``, in the layout of SkyRL's data sets."""
    play = Play(SharedTask.of(env_id, options))
    questions = play.task.questions
    return [
        {
            "data_source": name,
            "prompt": _prompt(play, questions[index].text),
            "env_class": name,
            "reward_spec": {"method": "rule", "ground_truth": list(questions[index].answers)},
            "question_index": index,
        }
        for index in range(min(len(questions), limit or len(questions)))
    ]
