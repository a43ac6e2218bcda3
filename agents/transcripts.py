"""Rollouts as JSON-able rows: what ``transcripts.jsonl`` holds and ``search_gym.viewer`` reads back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents import losses
from agents.policy import CausalLMWithValueHead
from agents.rollout import Rollout, collate
from agents.tasks import question_kind
from search_gym import TokenCodec, Transcript
from search_gym.estimates import METRICS
from search_gym.render import token_texts
from search_gym.rewards import em_score, f1_score, subem_score

__all__ = ["METRICS", "describe", "score", "transcript_of"]

Numbers = Mapping[str, npt.NDArray[np.float32]]


def score(rollout: Rollout) -> dict[str, float]:
    """The metrics of one episode; an unanswered one has em = f1 = subem = 0, whatever reward the environment gave.

    ``searches`` and ``sampled_tokens`` are counts, ``valid_turns`` the share of turns that searched or answered,
    ``truncated`` is 0 or 1.
    """
    answers = rollout.question.answers
    return {
        "em": em_score(rollout.answer, answers),
        "f1": f1_score(rollout.answer, answers),
        "subem": subem_score(rollout.answer, answers),
        "searches": float(rollout.num_searches),
        "valid_turns": float(np.mean([turn.event != "invalid" for turn in rollout.turns])),
        "truncated": float(rollout.truncated),
        "sampled_tokens": float(rollout.loss_mask.sum()),
    }


def describe(
    rollouts: Sequence[Rollout],
    codec: TokenCodec,
    *,
    label: str,
    policy: CausalLMWithValueHead | None = None,
    numbers: Sequence[Numbers] | None = None,
) -> list[dict[str, Any]]:
    """A JSON-able row for each episode: question, answer, metrics, spans, and what is known about every token.

    ``logprobs`` is null where the policy did not sample, and so are ``values``, ``advantages`` and ``ratios``, where
    they are known. ``numbers`` holds them for each episode by name, in the order of its sampled tokens. Without it, a
    ``policy`` with a value head adds them: advantages by GAE with gamma = lambda = 1, and ratios of the probability
    under it to that at sampling, temperature 1, which are 1 for the policy that sampled, but for rounding. What is not
    finite is null, too.
    """
    if numbers is None:
        numbers = [{}] * len(rollouts) if policy is None else _numbers(rollouts, codec, policy)
    rows = []
    for rollout, known in zip(rollouts, numbers, strict=True):
        columns = {name: _scatter(x, rollout.loss_mask) for name, x in {"logprobs": rollout.logprobs, **known}.items()}
        rows.append(
            {
                "label": label,
                "question": rollout.question.text,
                "question_id": rollout.question.question_id,
                "answers": list(rollout.question.answers),
                "kind": question_kind(rollout.question),
                "answer": rollout.answer,
                **score(rollout),
                "reward": rollout.reward,
                "spans": [span._asdict() for span in rollout.spans],
                "token_ids": rollout.token_ids.tolist(),
                "tokens": token_texts(transcript_of(rollout), codec),
                **columns,
            }
        )
    return rows


def transcript_of(rollout: Rollout) -> Transcript:
    """The transcript that the rollout was read from."""
    transcript = Transcript()
    for kind, start, stop in rollout.spans:
        transcript.append(kind, rollout.token_ids[start:stop])
    return transcript


@torch.no_grad()
def _numbers(rollouts: Sequence[Rollout], codec: TokenCodec, policy: CausalLMWithValueHead) -> list[Numbers]:
    policy.eval()
    found: list[Numbers] = []
    for start in range(0, len(rollouts), 16):
        part = rollouts[start : start + 16]
        batch = collate(part, codec.pad_id, policy.model.device)
        scored = policy.evaluate_tokens(batch.token_ids, batch.attention_mask, batch.loss_mask, 1.0)
        advantages, _ = losses.gae(batch.rewards, scored.values, batch.loss_mask, gamma=1.0, lam=1.0)
        ratios = (scored.logprobs - batch.old_logprobs).exp()
        known = {"values": scored.values, "advantages": advantages, "ratios": ratios}
        for row, sampled in enumerate(batch.loss_mask):
            found.append({name: x[row][sampled].cpu().numpy() for name, x in known.items()})
    return found


def _scatter(sampled: npt.NDArray[np.float32], loss_mask: npt.NDArray[np.bool_]) -> list[float | None]:
    """Numbers of the sampled tokens, in order, at their places in the transcript; None elsewhere, or if not finite."""
    numbers = iter(sampled.tolist())
    known = [next(numbers) if is_sampled else math.nan for is_sampled in loss_mask]
    return [round(number, 6) if math.isfinite(number) else None for number in known]
