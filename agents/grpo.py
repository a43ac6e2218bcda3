"""Token-level GRPO for a policy that reasons and searches. ``diff agents/ppo.py agents/grpo.py`` is the lesson.

``python -m agents.grpo`` trains the tiny model on TinyWiki; ``--help`` explains every option. An update:

1. Roll out: several environments ask the same question; the policy writes turns, the environment appends documents.
2. Score the base model on the batch. There are no values, and the policy's own log-probabilities are those of sampling.
3. Advantages: how much better than the rest of its group a rollout did, in standard deviations; one number for all of
   its tokens.
4. Improve: clipped policy loss - entropy bonus + KL to the base model, over sampled tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents import losses
from agents.config import TrainConfig, run_command
from agents.policy import CausalLMPolicy
from agents.presets import LONG, MATCHED, search_r1
from agents.runlog import RunLog
from agents.tasks import MakeEnvs, make_envs
from agents.trainer import Trainer


@dataclass(frozen=True)
class GRPOConfig(TrainConfig):
    """GRPO (Shao et al. 2024, arXiv 2402.03300) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/grpo")
    group_size: int = 4
    kl_coef: float = 0.005
    aggregation: losses.Aggregation = "token-mean"
    """What counts the same in the loss: every token of a mini-batch, or every rollout."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    """See clip_low."""
    llds_coef: float = 0.0
    """Weight of the penalty on likelihood that good actions lose (LLDS, arXiv 2512.04220)."""
    llds_gate: Literal["turn", "rollout"] = "turn"
    """Whether the penalty looks at a turn's likelihood or at a whole rollout's."""


PRESETS: dict[str, GRPOConfig] = {
    "default": GRPOConfig(),
    "long": GRPOConfig(**LONG, run_dir=Path("runs/grpo-long")),
    "matched": GRPOConfig(**MATCHED, run_dir=Path("runs/grpo-matched")),
    "search_r1": GRPOConfig(
        **search_r1(rollouts_per_prompt=5, learning_rate=1e-6, kl="k3-loss", top_p=0.95),
        run_dir=Path("runs/grpo-search-r1"),
    ),
}


def train(config: GRPOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="GRPO", make_envs=make_envs, log=log) as run:
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
                weights = part.weights(batch.loss_mask, config.aggregation)
                advantage = part.cut(advantages)
                policy_loss, stats = run.pieces.ppo_policy_loss(
                    new.logprobs, part.old_logprobs, advantage, mask, config.clip_low, config.clip_high, weights=weights
                )
                entropy = losses.weighted_sum(new.entropies, mask, weights)
                llds = losses.llds_loss(
                    new.logprobs, part.old_logprobs, advantage, mask, gate=config.llds_gate, weights=weights
                )
                loss = policy_loss - config.entropy_coef * entropy + config.llds_coef * llds
                stats |= losses.displacement(new.logprobs, part.old_logprobs, advantage, mask, weights=weights)
                stats |= {"policy": policy_loss, "entropy": entropy, "llds": llds}
                if ref_logprobs is not None:
                    kl = losses.kl_loss(new.logprobs, part.cut(ref_logprobs), mask, weights=weights)
                    loss = loss + config.kl_loss_coef * kl
                    stats["kl"] = kl
                run.backward(loss, stats)
            run.record(rollouts, batch, advantages)
    return run.policy


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(train, PRESETS, prog="python -m agents.grpo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
