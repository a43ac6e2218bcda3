"""GSPO: GRPO with one ratio for each rollout. ``diff agents/grpo.py agents/gspo.py`` is the lesson.

``python -m agents.gspo`` trains the tiny model on TinyWiki. What differs from GRPO (Zheng et al. 2025, arXiv
2507.18071): the unit of reward is the rollout, and so is the unit of importance weights and of clipping. The ratio is
the geometric mean of the token ratios, every rollout counts the same, and the clip range is narrower.
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
class GSPOConfig(TrainConfig):
    """GSPO (Zheng et al. 2025, arXiv 2507.18071) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/gspo")
    group_size: int = 4
    kl_coef: float = 0.005
    clip_low: float = 0.05
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.05
    """See clip_low."""


PRESETS: dict[str, GSPOConfig] = {
    "default": GSPOConfig(),
    "long": GSPOConfig(**LONG, run_dir=Path("runs/gspo-long")),
    "matched": GSPOConfig(**MATCHED, run_dir=Path("runs/gspo-matched")),
}


def train(config: GSPOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="GSPO", make_envs=make_envs, log=log) as run:
        for _ in run.updates():
            rollouts = run.collect()
            batch = run.collate(rollouts)
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            advantages = run.pieces.group_advantages(rewards.sum(dim=1), batch.group_ids)
            advantages = losses.spread(advantages, batch.loss_mask)

            for part in run.minibatches(batch, advantages):
                mask = part.loss_mask
                new = run.evaluate(part)
                weights = part.weights(batch.loss_mask, "sequence-mean")
                policy_loss, stats = losses.gspo_policy_loss(
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
    run_command(train, PRESETS, prog="python -m agents.gspo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
