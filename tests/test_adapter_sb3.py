"""Stable-Baselines3 trains in both views, in its own vector environments; the page's code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra sb3")
contrib = pytest.importorskip("sb3_contrib", reason="needs the extra sb3")

from stable_baselines3.common.env_util import make_vec_env  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv  # noqa: E402

from search_gym.adapters.sb3 import macro_env, play, token_env  # noqa: E402

OPTIONS = {"question_options": {"kinds": ["1-hop"], "num_questions": 20}, "top_k": 1}
PAGE = Path(__file__).parents[1] / "docs" / "adapters" / "sb3.md"


@pytest.mark.parametrize("algorithm", [sb3.PPO, contrib.MaskablePPO])
def test_both_algorithms_train_and_play(algorithm):
    envs = make_vec_env(macro_env, n_envs=2, seed=1, env_kwargs=OPTIONS)
    model = algorithm("MultiInputPolicy", envs, n_steps=16, batch_size=32, n_epochs=1, seed=1, device="cpu").learn(32)
    played = play(model, macro_env(**OPTIONS), range(3))
    assert [p.episode.question.question_id for p in played] == [
        macro_env(**OPTIONS).get_wrapper_attr("task").questions[i].question_id for i in range(3)
    ]
    assert all(p.episode.is_finished and p.reward in (0.0, 1.0) for p in played)


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, SubprocVecEnv])
def test_vector_environments_take_the_views(vec_env_cls):
    envs = make_vec_env(macro_env, n_envs=2, seed=1, env_kwargs=OPTIONS, vec_env_cls=vec_env_cls)
    assert envs.reset()["names"].shape[0] == 2
    masks = envs.env_method("action_masks")
    envs.step(np.array([np.flatnonzero(mask)[0] for mask in masks]))
    envs.close()


def test_the_one_token_view_trains():
    envs = make_vec_env(token_env, n_envs=2, seed=1, env_kwargs={**OPTIONS, "max_context_tokens": 160})
    model = contrib.MaskablePPO("MultiInputPolicy", envs, n_steps=8, batch_size=16, n_epochs=1, device="cpu")
    before = [weight.clone() for weight in model.policy.parameters()]
    model.learn(16)
    assert model.num_timesteps == 16
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.slow
def test_maskable_ppo_learns_one_hop():
    envs = make_vec_env(macro_env, n_envs=8, seed=1, env_kwargs={**OPTIONS, "question_options": {"kinds": ["1-hop"]}})
    model = contrib.MaskablePPO(
        "MultiInputPolicy", envs, n_steps=128, batch_size=256, gamma=1.0, learning_rate=1e-3, seed=1, device="cpu"
    ).learn(20_000)
    env = macro_env(**{**OPTIONS, "question_options": {"kinds": ["1-hop"]}}, split="test")
    assert np.mean([p.reward for p in play(model, env, range(200))]) > 0.9


@pytest.mark.parametrize("name", ["sb3", "gymnasium"])
def test_the_code_of_the_page_runs(name):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.with_stem(name).read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, f"{name}.md", "exec"), names)
    if name == "gymnasium":
        assert len(names["observations"]) == len(names["envs"].env_fns) == 2
    else:
        assert len(names["rewards"]) == 10
        assert set(names["rewards"]) <= {0.0, 1.0}
