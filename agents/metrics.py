"""What a round of rollouts comes to; docs/metrics.md explains every name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from agents.policy import TokenEvaluation, TokenScores
from agents.rollout import Rollout, RolloutBatch
from agents.tasks import question_kind
from search_gym.rewards import em_score


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over episodes, exact match also for each kind of question that was asked; failed searches are counted."""
    em = np.array([em_score(rollout.answer, rollout.question.answers) for rollout in rollouts])
    kinds = np.array([question_kind(rollout.question) for rollout in rollouts])
    return {
        "rollout/em": float(em.mean()),
        **{f"rollout/em/{kind}": float(em[kinds == kind].mean()) for kind in np.unique(kinds)},
        "rollout/reward": float(np.mean([rollout.reward for rollout in rollouts])),
        "rollout/searches": float(np.mean([rollout.num_searches for rollout in rollouts])),
        "rollout/valid_turns": float(np.mean([turn.event != "invalid" for r in rollouts for turn in r.turns])),
        "rollout/truncated": float(np.mean([rollout.truncated for rollout in rollouts])),
        "rollout/sampled_tokens": float(np.mean([rollout.loss_mask.sum() for rollout in rollouts])),
        "env/retrieval_failures": sum(rollout.num_retrieval_failures for rollout in rollouts),
    }


def zero_variance_groups(batch: RolloutBatch) -> float:
    """The share of groups in which every rollout earned the same reward, so that none is better than another."""
    rewards = batch.rewards.sum(dim=1)
    groups, group = batch.group_ids.unique(return_inverse=True)
    start = torch.zeros(len(groups), device=rewards.device)
    low, high = (start.scatter_reduce(0, group, rewards, how, include_self=False) for how in ("amin", "amax"))
    return float((low == high).float().mean())


def logprob_mismatch(scored: TokenScores | TokenEvaluation, batch: RolloutBatch) -> dict[str, float]:
    """How far the log-probabilities of tokens, in nats, differ between sampling and training: mean and maximum.

    Rounding apart, both are 0.
    """
    difference = (scored.logprobs - batch.old_logprobs)[batch.loss_mask].abs()
    return {
        "loss/logprob_mismatch": float(difference.mean()),
        "loss/logprob_mismatch_max": float(difference.max()),
    }
