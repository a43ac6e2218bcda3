"""DAPO: GRPO that trains on informative groups only. ``diff agents/grpo.py agents/dapo.py`` is the lesson.

``python -m agents.dapo`` trains the tiny model on TinyWiki. What differs from GRPO (Yu et al. 2025, arXiv 2503.14476):

* Clip-higher: a wider range above 1, so that unlikely tokens can gain probability.
* Dynamic sampling: a group whose rollouts all earned the same says nothing; more questions are drawn until there are
  enough groups that do, or until ``max_rounds`` rounds have been sampled.
* Every token counts the same, and there is no KL term.

Differs from the paper: no soft punishment of overlong answers, because turns have a limit of their own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents import losses
from agents.config import TrainConfig, run_command
from agents.policy import CausalLMPolicy
from agents.presets import LONG, MATCHED
from agents.rollout import Rollout
from agents.runlog import RunLog
from agents.tasks import MakeEnvs, make_envs
from agents.trainer import Trainer
from search_gym.errors import OptionError


@dataclass(frozen=True)
class DAPOConfig(TrainConfig):
    """DAPO (Yu et al. 2025, arXiv 2503.14476) on the tokens that the policy samples."""

    run_dir: Path = Path("runs/dapo")
    group_size: int = 4
    kl_coef: float = 0.0
    max_rounds: int = 4
    """Rounds that are sampled at most for one update; what is informative by then is trained on."""
    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.28
    """See clip_low."""

    def check(self, num_processes: int = 1) -> None:
        """Raises OptionError: as every configuration, and when a mini-batch would cut a group."""
        super().check(num_processes)
        if self.group_size < 2:
            raise OptionError(
                "expected group_size >= 2, because a rollout alone cannot do better than its group, got "
                f"{self.group_size}; do: raise it, or use agents.reinforce"
            )
        if self.minibatch_size % self.group_size:
            raise OptionError(
                "expected minibatch_size to be a multiple of group_size, so that whole groups are left over, got "
                f"{self.minibatch_size} and {self.group_size}; do: change one of them"
            )


PRESETS: dict[str, DAPOConfig] = {
    "default": DAPOConfig(),
    "long": DAPOConfig(**LONG, run_dir=Path("runs/dapo-long")),
    "matched": DAPOConfig(**MATCHED, run_dir=Path("runs/dapo-matched")),
}


def informative_groups(rollouts: Sequence[Rollout], group_size: int) -> list[Rollout]:
    """Those groups of ``group_size`` in a row whose rollouts did not all earn the same."""
    groups = [list(rollouts[i : i + group_size]) for i in range(0, len(rollouts), group_size)]
    return [rollout for group in groups if len({r.reward for r in group}) > 1 for rollout in group]


def train(config: DAPOConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None) -> CausalLMPolicy:
    """Train a policy, write its checkpoint to ``config.run_dir``, and return it.

    Baselines bring their own ``make_envs``.

    Raises:
        OptionError, CheckpointError: options or files do not fit. CollapseError: see ``health.on_collapse``.
    """
    with Trainer(config, title="DAPO", make_envs=make_envs, log=log) as run:
        for _ in run.updates():
            rollouts: list[Rollout] = []
            for _ in range(config.max_rounds):
                rollouts += informative_groups(run.collect(), config.group_size)
                if len(rollouts) >= config.rollouts_per_update:
                    break
            rollouts = rollouts[: config.rollouts_per_update]
            if not rollouts:
                run.skip()
                continue
            # What is over whole mini-batches is left out, but early in a run even one mini-batch may not come together.
            rollouts = rollouts[: len(rollouts) // config.minibatch_size * config.minibatch_size or len(rollouts)]
            batch = run.collate(rollouts)
            ref_logprobs = run.score_reference(batch)

            rewards = losses.penalised_rewards(
                batch.rewards, batch.old_logprobs, ref_logprobs, batch.loss_mask, config.kl_reward_coef
            )
            advantages = run.pieces.group_advantages(rewards.sum(dim=1), batch.group_ids)
            advantages = losses.spread(advantages, batch.loss_mask)

            for part in run.minibatches(batch):
                mask = part.loss_mask
                new = run.evaluate(part)
                weights = part.weights(batch.loss_mask)
                advantage = part.cut(advantages)
                policy_loss, stats = run.pieces.ppo_policy_loss(
                    new.logprobs, part.old_logprobs, advantage, mask, config.clip_low, config.clip_high, weights=weights
                )
                entropy = losses.weighted_sum(new.entropies, mask, weights)
                loss = policy_loss - config.entropy_coef * entropy
                stats |= losses.displacement(new.logprobs, part.old_logprobs, advantage, mask, weights=weights)
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
    run_command(train, PRESETS, prog="python -m agents.dapo", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
