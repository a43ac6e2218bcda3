"""RLOO: REINFORCE whose baseline is the rest of the group. ``diff agents/grpo.py agents/rloo.py`` is the lesson.

``python -m agents.rloo`` trains the tiny model on TinyWiki. What differs from GRPO (Ahmadian et al. 2024, arXiv
2402.14740): a rollout's baseline is the mean reward of the others in its group, which makes the gradient unbiased,
there is no division by a standard deviation, and no ratio that could be clipped.
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
class RLOOConfig(TrainConfig):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/rloo")
    group_size: int = 4
    kl_coef: float = 0.005


PRESETS: dict[str, RLOOConfig] = {
    "default": RLOOConfig(),
    "long": RLOOConfig(**LONG, run_dir=Path("runs/rloo-long")),
    "matched": RLOOConfig(**MATCHED, run_dir=Path("runs/rloo-matched")),
}


def train(config: RLOOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="RLOO", make_envs=make_envs, log=log) as run:
        for _ in run.updates():
            rollouts = run.collect()
            batch = run.collate(rollouts)
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            advantages = run.pieces.group_advantages(
                rewards.sum(dim=1), batch.group_ids, normalize_std=False, leave_one_out=True
            )
            advantages = losses.spread(advantages, batch.loss_mask)

            for part in run.minibatches(batch, advantages):
                mask = part.loss_mask
                new = run.evaluate(part)
                weights = part.weights(batch.loss_mask)
                policy_loss = losses.reinforce_loss(new.logprobs, part.cut(advantages), mask, weights=weights)
                stats = losses.displacement(
                    new.logprobs, part.old_logprobs, part.cut(advantages), mask, weights=weights
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
    run_command(train, PRESETS, prog="python -m agents.rloo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
