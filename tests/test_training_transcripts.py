"""Episodes that were trained on are kept with the numbers that training used, and only of finished updates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import algorithms
from agents.checkpoint import load_policy
from agents.config import SaveConfig
from agents.training_transcripts import FILE, TrainingTranscripts
from agents.transcripts import describe
from search_gym.errors import SearchGymError
from search_gym.viewer.run_folder import load_run

EPISODES = 16


def train(name: str, run_dir: Path, *, updates: int = 1, **save: Any) -> Any:
    """Train with rewards that the untrained policy earns now and then; the run's options."""
    preset = algorithms.load(name).PRESETS["default"]
    options = replace(
        preset,
        env=replace(preset.env, reward="format"),
        run_dir=run_dir,
        updates=updates,
        rollouts_per_update=EPISODES,
        minibatch_size=8,
        save=SaveConfig(save_every=100, **save),
    )
    algorithms.load(name).train(options)
    return options


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / FILE).read_text().splitlines()]


def sampled(row: dict[str, Any], name: str) -> np.ndarray:
    """The numbers of a row's sampled tokens; raises if another token has one."""
    is_sampled = [span["kind"] == "action" for span in row["spans"] for _ in range(span["start"], span["stop"])]
    assert [x is not None for x in row[name]] == is_sampled
    return np.array([x for x in row[name] if x is not None])


@pytest.fixture(scope="module", params=["ppo", "grpo"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[dict[str, Any]]]:
    """The options of a run of one update, and a row for every episode of it."""
    options = train(request.param, tmp_path_factory.mktemp("run") / request.param, transcripts=EPISODES)
    return options, rows_of(options.run_dir)


def test_ratios_compare_the_policy_after_the_update_with_that_at_sampling(kept: Any) -> None:
    options, rows = kept
    after, _ = load_policy(str(options.run_dir / "checkpoint"))
    assert len(rows) == EPISODES
    for row in rows:
        ids = torch.tensor([row["token_ids"]])
        is_sampled = torch.tensor([[x is not None for x in row["logprobs"]]])
        with torch.no_grad():
            new = after.evaluate_tokens(ids, torch.ones_like(is_sampled), is_sampled, options.temperature).logprobs
        expected = np.exp(new[is_sampled].numpy() - sampled(row, "logprobs"))
        np.testing.assert_allclose(sampled(row, "ratios"), expected, atol=1e-4)
    assert max(abs(sampled(row, "ratios") - 1).max() for row in rows) > 0.01


def test_advantages_are_those_of_the_algorithm(kept: Any) -> None:
    """Of the first update, before which every value is 0 and no KL has been paid."""
    options, rows = kept
    rewards = np.array([row["reward"] for row in rows])
    assert len(np.unique(rewards)) > 1
    if "value" in vars(options):
        # With gamma = lambda = 1, what is whitened over all sampled tokens is the reward of each token's episode.
        assert all((sampled(row, "values") == 0).all() for row in rows)
        per_token = np.repeat(rewards, [len(sampled(row, "advantages")) for row in rows])
        expected = (rewards - per_token.mean()) / per_token.std(ddof=1)
    else:
        assert "values" not in rows[0]
        groups = rewards.reshape(-1, options.group_size)
        deviation = groups.std(axis=1, ddof=1, keepdims=True)
        expected = ((groups - groups.mean(axis=1, keepdims=True)) / (deviation + 1e-6)).ravel()
    for row, advantage in zip(rows, expected, strict=True):
        np.testing.assert_allclose(sampled(row, "advantages"), advantage, atol=2e-3)


def test_the_page_of_the_run_has_them(kept: Any) -> None:
    options, rows = kept
    samples = load_run(options.run_dir).samples
    assert [sample.label for sample in samples] == ["training, update 1"] * EPISODES
    assert [sample.reward for sample in samples] == [row["reward"] for row in rows]
    assert {"log-probability", "advantage", "ratio"} <= samples[0].token_values.keys()


def test_the_first_and_the_last_update_are_kept_and_every_so_many_between(tmp_path: Path) -> None:
    options = train("ppo", tmp_path, updates=5, transcripts=3, transcripts_every=2)
    updates = [row["update"] for row in rows_of(tmp_path)]
    assert updates == [update for update in (1, 2, 4, 5) for _ in range(3)]
    before = (tmp_path / FILE).read_text()

    # As after a crash: a line is cut short, and the newest state is that of update 3.
    (tmp_path / FILE).write_text(before + '{"update": 5, "label"')
    codec = load_policy(options.model)[1]
    TrainingTranscripts(options, codec, finished=3)
    assert (tmp_path / FILE).read_text().splitlines() == before.splitlines()[:6]

    (tmp_path / FILE).write_text("{}\n")
    with pytest.raises(SearchGymError, match=r"training_transcripts.jsonl, line 1, got KeyError"):
        TrainingTranscripts(options, codec, finished=3)

    # A new run in the folder keeps nothing of the one before, whether it keeps episodes of its own or not.
    train("ppo", tmp_path, transcripts=0)
    assert not (tmp_path / FILE).exists()


def test_what_is_not_finite_is_null(tmp_path: Path, kept: Any) -> None:
    from agents.demo import held_out
    from agents.evaluate import evaluate
    from agents.tasks import make_envs

    options, _ = kept
    policy, codec = load_policy(options.model)
    envs, index = held_out(options.env, codec, make_envs, 1)
    rollouts = evaluate(policy.model, envs, index).rollouts[:1]
    number = np.full(len(rollouts[0].logprobs), np.nan, dtype=np.float32)
    number[-1] = 2.0
    (row,) = describe(rollouts, codec, label="x", numbers=[{"ratios": number}])
    assert [x for x in row["ratios"] if x is not None] == [2.0]
    json.dumps(row, allow_nan=False)
