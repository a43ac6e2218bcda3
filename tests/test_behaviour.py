"""Log-likelihoods of episodes and the dependence of queries on questions, against loops and known answers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.behaviour import behaviour_metrics, episode_logprobs, fano_bound, query_metrics, recognised, valid_structure
from agents.checkpoint import load_policy
from agents.generation import CachedGenerator
from agents.rollout import Rollout, TurnEvent, collect
from agents.tasks import EnvConfig, make_envs
from search_gym import Question, Span
from search_gym.rewards import em_score, has_valid_structure


def episode(question: str, queries: list[str], answer: str = "no", logprobs: tuple[float, ...] = (-1.0,)) -> Rollout:
    """An episode whose right answer is "yes"."""
    count = len(logprobs)
    return Rollout(
        question=Question("q", question, ("yes",), {}),
        question_index=0,
        token_ids=np.arange(1 + count),
        spans=(Span("prompt", 0, 1), Span("action", 1, 1 + count)),
        loss_mask=np.arange(1 + count) >= 1,
        logprobs=np.array(logprobs, dtype=np.float32),
        reward=0.0,
        terminated=True,
        truncated=False,
        turns=(*(TurnEvent("search", query) for query in queries), TurnEvent("answer", answer)),
        num_searches=len(queries),
    )


def test_logprobs_are_means_over_tokens_of_right_and_of_other_episodes() -> None:
    rollouts = [
        episode("a", [], "yes", (-1.0, -2.0, -3.0)),
        episode("a", [], "Yes!", (-6.0,)),
        episode("b", [], "no", (-0.5,)),
    ]
    assert episode_logprobs(rollouts) == {
        "rollout/logprob_correct": pytest.approx((-1 - 2 - 3 - 6) / 4),
        "rollout/logprob_incorrect": -0.5,
    }
    assert set(episode_logprobs(rollouts[2:])) == {"rollout/logprob_incorrect"}
    assert set(episode_logprobs(rollouts[:2])) == {"rollout/logprob_correct"}


def test_queries_are_counted_after_normalisation() -> None:
    rollouts = [
        episode("the city of ann", ["city of ann", "City of Ann!", "river"]),
        episode("the job of bob", ["river"]),
        episode("the job of bob", []),
    ]
    metrics = query_metrics(rollouts)
    assert metrics["rollout/distinct_queries"] == 2 / 4
    assert metrics["rollout/repeated_queries"] == 1 / 4
    # Of the two first queries one names its question; the other shares no word with any, so two candidates tie.
    assert metrics["rollout/query_retrieval"] == (1 + 1 / 2) / 2
    assert query_metrics([episode("a", [])]) == {}


def test_queries_that_name_their_question_carry_all_information_and_constant_ones_none() -> None:
    questions = [f"where was person{i} born" for i in range(8)]
    naming = [episode(question, [f"person{i} born"]) for i, question in enumerate(questions)]
    constant = [episode(question, ["person3 born"]) for question in questions]
    shared = [episode(question, ["where was"]) for question in questions]
    for rollouts, accuracy, information in ((naming, 1, math.log(8)), (constant, 1 / 8, 0), (shared, 1 / 8, 0)):
        metrics = behaviour_metrics(rollouts)
        assert metrics["rollout/query_retrieval"] == pytest.approx(accuracy)
        assert metrics["rollout/query_information"] == pytest.approx(information, abs=1e-12)


@given(st.integers(0, 10_000))
def test_recognition_equals_the_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = list("abcdefgh")

    def text() -> str:
        return " ".join(rng.choice(words, rng.integers(1, 4)))

    candidates = list(dict.fromkeys(text() for _ in range(rng.integers(1, 6))))
    pairs = [(text(), candidates[rng.integers(len(candidates))]) for _ in range(6)]
    hits = []
    for query, question in pairs:
        scores = {}
        for candidate in candidates:
            held = set(query.split()) & set(candidate.split())
            n = {word: sum(word in other.split() for other in candidates) for word in held}
            scores[candidate] = round(sum(math.log(len(candidates) / n[word]) for word in sorted(held)), 6)
        best = [candidate for candidate in candidates if scores[candidate] == max(scores.values())]
        hits.append((question in best) / len(best))
    assert recognised(Counter(pairs), candidates) == pytest.approx(np.mean(hits))


@given(st.integers(2, 50), st.floats(0, 1))
def test_the_bound_is_that_of_a_channel_that_errs_evenly(n: int, accuracy: float) -> None:
    """Where a wrong name is any of the others, Fano's inequality is an equality; the channel must beat chance."""
    others = (1 - accuracy) / (n - 1)
    terms = [accuracy * math.log(accuracy * n) if accuracy > 0 else 0.0]
    terms += [others * math.log(others * n)] * (n - 1) if others > 0 else []
    assert fano_bound(accuracy, n) == pytest.approx(sum(terms), abs=1e-9)
    assert 0 <= fano_bound(accuracy, n) <= math.log(n) + 1e-12


def test_one_question_tells_nothing() -> None:
    assert fano_bound(1.0, 1) == 0.0


def test_structure_is_what_the_reward_saw() -> None:
    policy, codec = load_policy("tiny")
    envs = make_envs(EnvConfig(), codec, 40, reward_fn=lambda outcome: float(has_valid_structure(outcome)))
    rollouts = collect(envs, CachedGenerator(policy.model, codec), range(40), seed=1)
    rewards = [rollout.reward for rollout in rollouts]
    assert {0.0, 1.0} == set(rewards)
    for rollout in rollouts:
        assert valid_structure([rollout], codec) == rollout.reward
    assert valid_structure(rollouts, codec) == pytest.approx(np.mean(rewards))
    assert all(em_score(r.answer, r.question.answers) in (0.0, 1.0) for r in rollouts)
    right = [replace(r, question=replace(r.question, answers=(r.answer or "-",))) for r in rollouts]
    assert ("rollout/logprob_incorrect" in episode_logprobs(right)) == any(r.answer is None for r in rollouts)
