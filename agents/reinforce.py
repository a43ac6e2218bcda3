"""REINFORCE++: REINFORCE with a batch baseline. ``diff agents/grpo.py agents/reinforce.py`` is the lesson.

``python -m agents.reinforce`` trains the tiny model on TinyWiki. What differs from GRPO (Williams 1992; Hu et al. 2025,
arXiv 2501.03262): one rollout of each question, and no group. The advantage of a token is the reward from there on,
whitened over all sampled tokens of the round: what the whole round earned is the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from agents import losses
from agents.config import TrainConfig, run_command
from agents.policy import CausalLMPolicy
from agents.presets import LONG, MATCHED
from agents.runlog import RunLog
from agents.tasks import MakeEnvs, make_envs
from agents.trainer import Trainer


@dataclass(frozen=True)
class ReinforceConfig(TrainConfig):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/reinforce")
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    """See clip_low."""


PRESETS: dict[str, ReinforceConfig] = {
    "default": ReinforceConfig(),
    "long": ReinforceConfig(**LONG, run_dir=Path("runs/reinforce-long")),
    "matched": ReinforceConfig(**MATCHED, run_dir=Path("runs/reinforce-matched")),
}


def train(config: ReinforceConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="REINFORCE", make_envs=make_envs, log=log) as run:
        for _ in run.updates():
            rollouts = run.collect()
            batch = run.collate(rollouts)
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            no_values = torch.zeros_like(rewards)
            advantages, _ = run.pieces.gae(rewards, no_values, batch.loss_mask, gamma=1.0, lam=1.0)
            advantages = losses.masked_whiten(advantages, batch.loss_mask)

            for part in run.minibatches(batch):
                mask = part.loss_mask
                new = run.evaluate(part)
                weights = part.weights(batch.loss_mask)
                policy_loss, stats = run.pieces.ppo_policy_loss(
                    new.logprobs,
                    part.old_logprobs,
                    part.cut(advantages),
                    mask,
                    config.clip_low,
                    config.clip_high,
                    weights=weights,
                )
                entropy = losses.weighted_sum(new.entropies, mask, weights)
                loss = policy_loss - config.entropy_coef * entropy
                stats |= {"policy": policy_loss, "entropy": entropy}
                if ref_logprobs is not None:
                    kl = losses.kl_loss(new.logprobs, part.cut(ref_logprobs), mask, weights=weights)
                    loss = loss + config.kl_loss_coef * kl
                    stats["kl"] = kl
                run.backward(loss, stats)
            run.record(rollouts, batch, advantages)
    return run.policy


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(train, PRESETS, prog="python -m agents.reinforce", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
