"""What PPO has and the others do not: values, a critic of its own, advantages of turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from probes import PROBES, make_base, probe_config

from agents import ppo
from agents.checkpoint import load_policy
from agents.config import named_preset
from agents.ppo import PRESETS, ValueConfig

CONSTANT, IN_PROMPT, ONE_SEARCH, _ = PROBES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("ppo") / "base")


def train(base: Path, run_dir: Path, probe: Any, **options: Any) -> list[dict[str, float]]:
    ppo.train(probe_config(PRESETS["default"], base, run_dir, **options), make_envs=probe.make_envs)
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        {"advantages": "turn"},
        {"value": ValueConfig(critic="separate")},
        {"value": ValueConfig(mask="response", clip=0.5)},
        {"gamma": 0.9, "lam": 0.9},
        {"kl": "k1-reward", "kl_coef": 1e-3},
    ],
    ids=["turns", "separate critic", "values on observations", "discounted", "k1 in the reward"],
)
def test_each_kind_of_ppo_learns_to_search(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    rows = train(base, tmp_path, ONE_SEARCH, updates=ONE_SEARCH.updates, **options)
    assert rows[0]["rollout/reward"] < ONE_SEARCH.before
    assert rows[-1]["rollout/reward"] > ONE_SEARCH.after


def test_values_come_to_explain_the_returns(base: Path, tmp_path: Path) -> None:
    """With four questions and a policy that does not learn, the value of a question is its mean reward."""
    options = {"learning_rate": 0.0, "updates": 20, "value": ValueConfig(critic="separate")}
    rows = train(base, tmp_path, CONSTANT, **options)
    assert rows[0]["loss/explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["loss/value"] < rows[0]["loss/value"]
    assert rows[-1]["loss/explained_variance"] > 0.2


def test_a_separate_critic_is_saved_and_resumed_from(base: Path, tmp_path: Path) -> None:
    options = {"updates": 2, "value": ValueConfig(critic="separate")}
    train(base, tmp_path / "first", IN_PROMPT, **options)
    policy, _ = load_policy(tmp_path / "first" / "checkpoint")
    base_policy, _ = load_policy(base)
    assert policy.critic is not None
    # Both began as the base model, and have learnt different things.
    for weights in zip(
        policy.model.parameters(), policy.critic.parameters(), base_policy.model.parameters(), strict=True
    ):
        model, critic, start = weights
        if not torch.equal(model, start):
            assert not torch.equal(model, critic)
    train(tmp_path / "first" / "checkpoint", tmp_path / "second", IN_PROMPT, **{**options, "learning_rate": 0.0})
    again, _ = load_policy(tmp_path / "second" / "checkpoint")
    assert again.critic is not None
    for one, other in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_preset_that_a_command_line_names() -> None:
    assert named_preset(PRESETS, ["--seed", "3", "--preset", "matched"]) is PRESETS["matched"]
    assert named_preset(PRESETS, []) is PRESETS["default"]
