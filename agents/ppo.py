"""Token-level PPO for a policy that reasons and searches. One file, read top to bottom.

``python -m agents.ppo`` trains the tiny model on TinyWiki; ``--help`` explains every option. An update:

1. Roll out: every environment asks one question; the policy writes turns, the environment appends documents.
2. Score the old policy on the batch: values, and log-probabilities that must equal those of sampling.
3. Advantages: GAE over sampled tokens, whitened.
4. Improve: clipped policy loss + value loss - entropy bonus + KL to the base model, over sampled tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agents import losses
from agents.config import TrainConfig, run_command
from agents.policy import CausalLMWithValueHead
from agents.presets import LONG, MATCHED, search_r1
from agents.runlog import RunLog
from agents.tasks import MakeEnvs, make_envs
from agents.trainer import Trainer
from search_gym.errors import OptionError


@dataclass(frozen=True)
class ValueConfig:
    """The value function and its loss."""

    coef: float = 0.5
    """Weight of the value loss."""
    clip: float | None = None
    """How far a value may move from the old one in an update; None: any distance."""
    critic: Literal["shared", "separate"] = "shared"
    """What the value head reads: the policy's last hidden state, or that of a second model that begins as its copy."""
    mask: Literal["sampled", "response"] = "sampled"
    """Tokens that have a value, in GAE, whitening and value loss: the policy's, or all after the prompt."""


@dataclass(frozen=True)
class PPOConfig(TrainConfig):
    """PPO (Schulman et al. 2017, arXiv 1707.06347) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/ppo")
    value: ValueConfig = field(default_factory=ValueConfig)
    gamma: float = 1.0
    """Discount per sampled token."""
    lam: float = 1.0
    """GAE's lambda."""
    advantages: Literal["token", "turn"] = "token"
    """What GAE takes for one decision: a token, or a whole turn."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    """See clip_low."""

    def check(self, num_processes: int = 1) -> None:
        """Raises OptionError: as every configuration, and when turns are to be told apart that are not."""
        super().check(num_processes)
        if self.advantages == "turn" and self.value.mask == "response":
            raise OptionError(
                "expected advantages='token' with value.mask='response', got 'turn'; do: set --value.mask sampled, "
                "because turns are runs of sampled tokens"
            )


PRESETS: dict[str, PPOConfig] = {
    "default": PPOConfig(),
    "long": PPOConfig(**LONG, run_dir=Path("runs/ppo-long")),
    "matched": PPOConfig(**MATCHED, run_dir=Path("runs/ppo-matched")),
    "search_r1": PPOConfig(
        **search_r1(rollouts_per_prompt=1, learning_rate=1e-6, kl="k1-reward", top_p=1.0),
        run_dir=Path("runs/ppo-search-r1"),
        value=ValueConfig(clip=0.5, critic="separate", mask="response"),
    ),
}


def train(config: PPOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMWithValueHead:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(
        config,
        title="PPO",
        make_envs=make_envs,
        log=log,
        with_values=True,
        separate_critic=config.value.critic == "separate",
    ) as run:
        for _ in run.updates():
            rollouts = run.collect()
            batch = run.collate(rollouts)
            valued = batch.loss_mask if config.value.mask == "sampled" else batch.response_mask
            values = run.score(batch, valued).values
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            if config.advantages == "turn":
                advantages, returns, valued = losses.turn_gae(rewards, values, valued, config.gamma, config.lam)
            else:
                advantages, returns = run.pieces.gae(rewards, values, valued, config.gamma, config.lam)
            explained_variance = losses.explained_variance(values, returns, valued)
            advantages = losses.masked_whiten(advantages, valued if config.advantages == "token" else batch.loss_mask)

            for part in run.minibatches(batch):
                mask = part.loss_mask
                new = run.evaluate(part, part.cut(valued) | mask)
                weights = part.weights(batch.loss_mask)
                advantage = part.cut(advantages)
                policy_loss, stats = run.pieces.ppo_policy_loss(
                    new.logprobs, part.old_logprobs, advantage, mask, config.clip_low, config.clip_high, weights=weights
                )
                value_loss, value_stats = losses.value_loss(
                    new.values,
                    part.cut(values),
                    part.cut(returns),
                    part.cut(valued),
                    config.value.clip,
                    weights=part.weights(valued),
                )
                entropy = losses.weighted_sum(new.entropies, mask, weights)
                loss = policy_loss + config.value.coef * value_loss - config.entropy_coef * entropy
                stats |= losses.displacement(new.logprobs, part.old_logprobs, advantage, mask, weights=weights)
                stats |= value_stats | {"policy": policy_loss, "value": value_loss, "entropy": entropy}
                if ref_logprobs is not None:
                    kl = losses.kl_loss(new.logprobs, part.cut(ref_logprobs), mask, weights=weights)
                    loss = loss + config.kl_loss_coef * kl
                    stats["kl"] = kl
                run.backward(loss, stats)
            metrics = {"loss/explained_variance": float(explained_variance)}
            run.record(rollouts, batch, advantages, metrics, values=values)
    assert isinstance(run.policy, CausalLMWithValueHead)
    return run.policy


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(train, PRESETS, prog="python -m agents.ppo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
