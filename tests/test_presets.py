"""Presets hold what they promise: the reference's numbers, equal terms, and a known distance from the defaults."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes import PROBES, make_base

from agents import algorithms, grpo, losses, ppo
from agents.checkpoint import load_policy
from agents.config import ComputeConfig, TrainConfig
from agents.generation import CachedGenerator
from agents.learner import learning_rate_factor
from agents.ppo import PPOConfig, ValueConfig
from agents.rollout import Rollout, RolloutBatch, collate, collect
from agents.tasks import EnvConfig, env_options
from agents.trainer import Trainer
from search_gym import WordCodec
from search_gym.errors import OptionError

_, IN_PROMPT, ONE_SEARCH, TWO_SEARCHES = PROBES
REFERENCE: dict[str, TrainConfig] = {"ppo": ppo.PRESETS["search_r1"], "grpo": grpo.PRESETS["search_r1"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("presets") / "base")


class TestSearchR1:
    """Literals are those of arXiv 2503.09516 and the training scripts of its authors (train_ppo.sh, train_grpo.sh)."""

    @pytest.mark.parametrize("config", REFERENCE.values(), ids=REFERENCE)
    def test_what_both_share(self, config: TrainConfig) -> None:
        assert config.updates == 500
        assert config.minibatch_size == 256
        assert config.epochs == 1
        assert config.temperature == 1.0
        assert config.kl_coef == 0.001
        assert config.entropy_coef == 0.001
        assert config.optimizer.learning_rate == 1e-6
        assert config.optimizer.max_grad_norm == 1.0
        assert config.optimizer.warmup_updates == 142  # 0.285 of 500 updates
        assert config.rollouts_per_update / config.group_size == 512
        assert config.model == "Qwen/Qwen2.5-3B"
        # After the warm-up the rate is constant.
        rates = config.optimizer
        factors = [
            learning_rate_factor(update, 500, rates.warmup_updates, rates.final_fraction) for update in range(500)
        ]
        assert factors[:142] == pytest.approx([(update + 1) / 143 for update in range(142)])
        assert set(factors[142:]) == {1.0}

    @pytest.mark.parametrize("config", REFERENCE.values(), ids=REFERENCE)
    def test_the_environment(self, config: TrainConfig) -> None:
        options = env_options(config.env, WordCodec(["word"]))
        assert {name: options[name] for name in ("top_k", "max_turns", "max_turn_tokens")} == {
            "top_k": 3,
            "max_turns": 4,
            "max_turn_tokens": 500,
        }
        assert options["max_observation_tokens"] == 500
        assert options["max_context_tokens"] == 4096
        assert options["close_think"] is False
        assert options["prompt_fn"] == "search_r1"
        assert config.env.reward == "em"

    def test_ppo(self) -> None:
        config = ppo.PRESETS["search_r1"]
        assert config.group_size == 1
        assert (config.kl, config.top_p) == ("k1-reward", 1.0)
        assert (config.clip_low, config.clip_high) == (0.2, 0.2)
        assert (config.gamma, config.lam, config.advantages) == (1.0, 1.0, "token")
        assert (config.value.clip, config.value.critic, config.value.mask) == (0.5, "separate", "response")
        assert config.optimizer.value_learning_rate == 1e-5
        assert config.optimizer.value_warmup_updates == 7  # 0.015 of 500 updates

    def test_grpo(self) -> None:
        config = grpo.PRESETS["search_r1"]
        assert config.group_size == 5
        assert (config.kl, config.top_p) == ("k3-loss", 0.95)
        assert (config.clip_low, config.clip_high) == (0.2, 0.2)
        assert config.aggregation == "token-mean"
        assert config.llds_coef == 0.0

    @pytest.mark.parametrize(("name", "steps"), [("ppo", 2), ("grpo", 10)])
    def test_optimiser_updates_in_a_round(
        self, name: str, steps: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One round at 1/64 of the size: 512 questions become 8, mini-batches of 256 rollouts become 4."""
        taken = []
        take_step = torch.optim.AdamW.step

        def counting_step(self: Any, *args: Any, **options: Any) -> Any:
            taken.append([group["lr"] for group in self.param_groups])
            return take_step(self, *args, **options)

        monkeypatch.setattr(torch.optim.AdamW, "step", counting_step)
        preset = REFERENCE[name]
        config = replace(
            preset,
            model=str(base),
            run_dir=tmp_path,
            updates=2,
            rollouts_per_update=preset.rollouts_per_update // 64,
            minibatch_size=preset.minibatch_size // 64,
            compute=ComputeConfig(device="cpu", micro_batch_size=2),
        )
        algorithms.load(name).train(config, make_envs=IN_PROMPT.make_envs)
        assert len(taken) == 2 * steps
        assert taken[0][0] == pytest.approx(1e-6 / 143)
        assert [rates[1:] for rates in taken[:steps]] == [[pytest.approx(1e-5 / 8)] * (name == "ppo")] * steps
        loaded, _ = load_policy(tmp_path / "checkpoint")
        assert (loaded.critic is not None) == (name == "ppo")


SHARED = [field.name for field in fields(TrainConfig) if field.name != "run_dir"]


class TestMatched:
    @pytest.mark.parametrize("name", algorithms.names())
    def test_all_options_that_algorithms_share_are_equal(self, name: str) -> None:
        config, expected = algorithms.load(name).PRESETS["matched"], ppo.PRESETS["matched"]
        assert {field: getattr(config, field) for field in SHARED} == {
            field: getattr(expected, field) for field in SHARED
        }
        assert config.top_p == 1.0  # training scores the distribution that was sampled

    @pytest.mark.parametrize("name", [name for name in algorithms.names() if name != "ppo"])
    def test_two_algorithms_begin_with_the_same_tokens(
        self, name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same questions throughout, the same samples until the first difference in what is learnt."""
        rounds: dict[str, list[list[Rollout]]] = {"ppo": [], name: []}
        for algorithm, collected in rounds.items():
            collect_round = Trainer.collect

            def recording(run: Trainer, collected: list = collected, collect_round: Any = collect_round) -> Any:
                collected.append(collect_round(run))
                return collected[-1]

            module = algorithms.load(algorithm)
            config = replace(
                module.PRESETS["matched"],
                model=str(base),
                run_dir=tmp_path / algorithm,
                updates=2,
                rollouts_per_update=16,
                minibatch_size=8,
                compute=ComputeConfig(device="cpu"),
            )
            with monkeypatch.context() as patch:
                patch.setattr(Trainer, "collect", recording)
                module.train(config, make_envs=IN_PROMPT.make_envs)
        mine, theirs = rounds[name], rounds["ppo"]
        assert len(theirs) == 2
        for a, b in zip(mine, theirs, strict=False):
            assert [r.question_index for r in a] == [r.question_index for r in b]
            assert [r.question_index for r in a[::4]] == [r.question_index for r in a[3::4]]
        for a, b in zip(mine[0], theirs[0], strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
            np.testing.assert_array_equal(a.logprobs, b.logprobs)
        # Once they have learnt different things they find different tokens likely.
        assert any(not np.array_equal(a.logprobs, b.logprobs) for a, b in zip(mine[1], theirs[1], strict=True))


@pytest.fixture(scope="module")
def batch(base: Path) -> RolloutBatch:
    """Episodes with searches, invalid turns and answers."""
    policy, codec = load_policy(base)
    envs = TWO_SEARCHES.make_envs(EnvConfig(), codec, 16)
    return collate(collect(envs, CachedGenerator(policy.model, codec), range(16), seed=2), codec.pad_id)


class TestValuesOnAllResponseTokens:
    """What ``value.mask="response"``, as in the reference, changes, on episodes of a real policy."""

    @staticmethod
    def estimates(batch: RolloutBatch, mask: torch.Tensor, seed: int, gamma: float, lam: float) -> torch.Tensor:
        values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return losses.gae(batch.rewards.double(), values, mask, gamma, lam)[0]

    @given(st.integers(0, 10_000))
    def test_advantages_agree_before_whitening_when_nothing_is_discounted(self, batch: RolloutBatch, seed: int) -> None:
        sampled, response = (
            self.estimates(batch, mask, seed, 1.0, 1.0) for mask in (batch.loss_mask, batch.response_mask)
        )
        torch.testing.assert_close(response[batch.loss_mask], sampled[batch.loss_mask], rtol=0, atol=1e-12)

    @given(st.integers(0, 10_000), st.sampled_from([(1.0, 0.9), (0.9, 1.0)]))
    def test_they_differ_when_something_is(
        self, batch: RolloutBatch, seed: int, discounts: tuple[float, float]
    ) -> None:
        sampled, response = (
            self.estimates(batch, mask, seed, *discounts) for mask in (batch.loss_mask, batch.response_mask)
        )
        difference = (response - sampled)[batch.loss_mask].abs()
        assert difference.max() > 0.01
        # Nothing comes after the last turn, so there they agree.
        for row in range(len(batch)):
            last = int(batch.loss_mask[row].nonzero()[-1])
            assert (response - sampled)[row, last].abs() < 1e-12

    def test_whitening_differs_because_observations_have_advantages_too(self, batch: RolloutBatch) -> None:
        sampled, response = (
            losses.masked_whiten(self.estimates(batch, mask, 0, 1.0, 1.0), mask)
            for mask in (batch.loss_mask, batch.response_mask)
        )
        assert sampled[batch.loss_mask].mean().abs() < 1e-9
        assert response[batch.loss_mask].mean().abs() > 1e-3
        # It is the same affine map for all of them, so their order stays.
        correlation = torch.corrcoef(torch.stack((sampled[batch.loss_mask], response[batch.loss_mask])))[0, 1]
        assert correlation == pytest.approx(1.0)

    def test_response_tokens_are_those_after_the_prompt(self, batch: RolloutBatch) -> None:
        is_observation = batch.response_mask & ~batch.loss_mask
        assert is_observation.any()
        assert not (batch.loss_mask & ~batch.response_mask).any()
        assert not (batch.response_mask & ~batch.attention_mask).any()

    def test_turns_are_refused(self) -> None:
        with pytest.raises(OptionError, match=r"value\.mask"):
            PPOConfig(advantages="turn", value=ValueConfig(mask="response")).check()


def test_kl_is_taken_in_one_place() -> None:
    """Where the reference's PPO and our default differ most: k1 taken from rewards against k3 added to the loss."""
    reference, default = ppo.PRESETS["search_r1"], ppo.PRESETS["default"]
    assert (reference.kl_reward_coef, reference.kl_loss_coef) == (0.001, 0.0)
    assert (default.kl_reward_coef, default.kl_loss_coef) == (0.0, default.kl_coef)
    assert default.kl_coef > 0
    assert (default.value.clip, reference.value.clip) == (None, 0.5)
    assert (default.clip_low, default.clip_high) == (reference.clip_low, reference.clip_high)
    assert (default.gamma, default.lam) == (reference.gamma, reference.lam) == (1.0, 1.0)
