"""Stable-Baselines3: environments that its algorithms take, and greedy play on chosen questions.

    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from search_gym.adapters.sb3 import macro_env

    model = PPO("MultiInputPolicy", make_vec_env(macro_env, n_envs=8)).learn(50_000)

`macro_env` and `token_env` can be given to ``make_vec_env`` with ``env_kwargs``, for ``DummyVecEnv`` and
``SubprocVecEnv``. What they return has ``action_masks()``, so sb3-contrib's ``MaskablePPO`` takes it, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

import search_gym  # noqa: F401, registers the environments
from search_gym.episode import Episode
from search_gym.wrappers import MacroActions, OneToken

TINY = "search_gym/TinyWiki-v0"


def macro_env(
    env_id: str = TINY,
    *,
    num_names: int = 6,
    num_relations: int = 3,
    fixed_answers: Sequence[str] = (),
    **options: Any,
) -> MacroActions:
    """`MacroActions` over ``gym.make(env_id, **options)``."""
    return MacroActions(gym.make(env_id, **options), num_names, num_relations, fixed_answers)


def token_env(env_id: str = TINY, **options: Any) -> OneToken:
    """`OneToken` over ``gym.make(env_id, **options)``."""
    return OneToken(gym.make(env_id, **options))


@dataclass(frozen=True, slots=True)
class Played:
    """A finished episode: its reward, what was answered (None: nothing), and how often documents were searched for."""

    episode: Episode
    reward: float
    answer: str | None
    num_searches: int


def play(model: Any, env: gym.Env[Any, Any], question_index: Iterable[int]) -> list[Played]:
    """One episode of each question with the model's most probable actions.

    ``model`` is a trained algorithm of Stable-Baselines3 or sb3-contrib, ``env`` what `macro_env` or `token_env` made.
    """
    has_masks = "action_masks" in inspect.signature(model.predict).parameters
    found = []
    for index in question_index:
        observation, _ = env.reset(options={"question_index": index})
        total, is_over, terminated, info = 0.0, False, False, {}
        while not is_over:
            masks = {"action_masks": env.get_wrapper_attr("action_masks")()} if has_masks else {}
            action, _ = model.predict(observation, deterministic=True, **masks)
            observation, reward, terminated, truncated, info = env.step(int(action))
            total += float(reward)
            is_over = terminated or truncated
        answer = info["content"] if terminated else None
        found.append(Played(env.get_wrapper_attr("episode"), total, answer, info["num_searches"]))
    return found
