"""Dr. GRPO: GRPO without its two biases. ``diff agents/grpo.py agents/dr_grpo.py`` is the lesson.

``python -m agents.dr_grpo`` trains the tiny model on TinyWiki. What differs from GRPO (Liu et al. 2025, arXiv
2503.20783):

* Advantages are not divided by the group's standard deviation, which favours questions that are almost always or almost
  never answered.
* A rollout's loss is the sum over its tokens over a constant, not their mean, which favours long wrong rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents import losses
from agents.config import TrainConfig, run_command
from agents.policy import CausalLMPolicy
from agents.presets import LONG, MATCHED
from agents.runlog import RunLog
from agents.tasks import MakeEnvs, make_envs
from agents.trainer import Trainer


@dataclass(frozen=True)
class DrGRPOConfig(TrainConfig):
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/dr_grpo")
    group_size: int = 4
    kl_coef: float = 0.005
    max_tokens: int = 32
    """The constant that the sum over a rollout's tokens is divided by; only the learning rate and KL feel it."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    """See clip_low."""


PRESETS: dict[str, DrGRPOConfig] = {
    "default": DrGRPOConfig(),
    "long": DrGRPOConfig(**LONG, run_dir=Path("runs/dr_grpo-long")),
    "matched": DrGRPOConfig(**MATCHED, run_dir=Path("runs/dr_grpo-matched")),
}


def train(config: DrGRPOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="Dr. GRPO", make_envs=make_envs, log=log) as run:
        for _ in run.updates():
            rollouts = run.collect()
            batch = run.collate(rollouts)
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            advantages = run.pieces.group_advantages(rewards.sum(dim=1), batch.group_ids, normalize_std=False)
            advantages = losses.spread(advantages, batch.loss_mask)

            for part in run.minibatches(batch, advantages):
                mask = part.loss_mask
                new = run.evaluate(part)
                weights = part.weights(batch.loss_mask, "sequence-sum", max_tokens=config.max_tokens)
                policy_loss, stats = run.pieces.ppo_policy_loss(
                    new.logprobs,
                    part.old_logprobs,
                    part.cut(advantages),
                    mask,
                    config.clip_low,
                    config.clip_high,
                    weights=weights,
                )
                entropy = losses.weighted_sum(new.entropies, mask, part.weights(batch.loss_mask))
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
    run_command(train, PRESETS, prog="python -m agents.dr_grpo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
