"""What a round comes to, against loops over its rollouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.metrics import logprob_mismatch, rollout_metrics, zero_variance_groups
from agents.policy import TokenScores
from agents.rollout import Rollout, TurnEvent, collate
from search_gym import Question, Span

KINDS = ("1-hop", "2-hop")


def rollout(answer: str | None, kind: str, events: list[str], reward: float, sampled: int) -> Rollout:
    """An episode of a prompt of two tokens and ``sampled`` tokens, whose right answer is "Yes"."""
    turns = [TurnEvent(event, "") for event in events]
    turns.append(TurnEvent("invalid", "") if answer is None else TurnEvent("answer", answer))
    return Rollout(
        question=Question("q", "Is it?", ("Yes",), {"kind": kind}),
        question_index=0,
        token_ids=np.arange(2 + sampled),
        spans=(Span("prompt", 0, 2), Span("action", 2, 2 + sampled)),
        loss_mask=np.arange(2 + sampled) >= 2,
        logprobs=-np.arange(1, sampled + 1, dtype=np.float32),
        reward=reward,
        terminated=answer is not None,
        truncated=answer is None,
        turns=tuple(turns),
        num_searches=events.count("search"),
        num_retrieval_failures=sampled * ("search" in events),
    )


# Rollouts are made inside the tests: beartype picks what it checks with the random module, which no strategy may use.
rollouts_strategy = st.lists(
    st.tuples(
        st.sampled_from([None, "yes", "no"]),
        st.sampled_from(KINDS),
        st.lists(st.sampled_from(["search", "invalid"]), max_size=3),
        st.sampled_from([0.0, 0.2, 1.0]),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=8,
)


@given(rollouts_strategy)
def test_rollout_metrics_equal_the_loop(drawn: list[tuple]) -> None:
    rollouts = [rollout(*parts) for parts in drawn]
    metrics = rollout_metrics(rollouts)
    right = [r.turns[-1].event == "answer" and r.turns[-1].content == "yes" for r in rollouts]
    kinds = [r.question.metadata["kind"] for r in rollouts]
    events = [turn.event for r in rollouts for turn in r.turns]
    expected = {
        "rollout/em": sum(right) / len(rollouts),
        "rollout/reward": sum(r.reward for r in rollouts) / len(rollouts),
        "rollout/searches": sum(r.num_searches for r in rollouts) / len(rollouts),
        "rollout/valid_turns": sum(event in ("search", "answer") for event in events) / len(events),
        "rollout/truncated": sum(r.answer is None for r in rollouts) / len(rollouts),
        "rollout/sampled_tokens": sum(len(r.logprobs) for r in rollouts) / len(rollouts),
        "env/retrieval_failures": sum(len(r.logprobs) for r in rollouts if r.num_searches),
    }
    for kind in set(kinds):
        of_kind = [is_right for is_right, other in zip(right, kinds, strict=True) if other == kind]
        expected[f"rollout/em/{kind}"] = sum(of_kind) / len(of_kind)
    assert metrics == pytest.approx(expected)


@given(st.integers(1, 4), st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=5), st.integers(0, 10_000))
def test_groups_in_which_all_earned_the_same(group_size: int, rewards: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    all_rewards = rng.choice(rewards, group_size * len(rewards)).tolist()
    batch = collate([rollout("no", "1-hop", [], reward, 2) for reward in all_rewards], 0, group_size=group_size)
    shuffled = batch.select(torch.from_numpy(rng.permutation(len(batch))))
    groups = [all_rewards[i : i + group_size] for i in range(0, len(all_rewards), group_size)]
    expected = sum(len(set(group)) == 1 for group in groups) / len(groups)
    assert zero_variance_groups(batch) == pytest.approx(expected)
    assert zero_variance_groups(shuffled) == pytest.approx(expected)


def test_the_mismatch_is_that_of_sampled_tokens() -> None:
    batch = collate([rollout("no", "1-hop", [], 0.0, 2), rollout("no", "1-hop", [], 0.0, 3)], 0)
    logprobs = batch.old_logprobs.clone()
    logprobs[0, 3] += 0.25
    logprobs[1, 2] -= 0.5
    logprobs[~batch.loss_mask] = 99.0
    scored = TokenScores(logprobs, torch.zeros_like(logprobs))
    # Two of five sampled tokens differ, one in each direction.
    assert logprob_mismatch(scored, batch) == {
        "loss/logprob_mismatch": pytest.approx((0.25 + 0.5) / 5),
        "loss/logprob_mismatch_max": 0.5,
    }
    assert set(logprob_mismatch(scored, replace(batch, old_logprobs=logprobs)).values()) == {0.0}
