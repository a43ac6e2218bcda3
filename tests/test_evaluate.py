"""Evaluation: every question once, metrics from the rollouts, intervals against a slow bootstrap, exact resumption."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from agents.checkpoint import load_policy, save_policy
from agents.evaluate import EvaluateConfig, bootstrap_interval, estimate, evaluate, main
from agents.rollout import Rollout, TurnEvent
from agents.tasks import REAL_TEXT, EnvConfig, make_envs
from agents.transcripts import METRICS, describe, score, transcript_of
from search_gym import Question, Span
from search_gym.errors import OptionError, UnknownNameError
from search_gym.rewards import em_score, f1_score, subem_score

TEST_WORLDS = EnvConfig(split="test", kinds=("1-hop", "2-hop"))


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    policy, codec = load_policy("tiny")
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.value_head.weight)
    return policy, codec


@pytest.fixture(scope="module")
def evaluation(tiny):
    """20 questions in waves of 8, 8 and 4."""
    policy, codec = tiny
    return evaluate(policy.model, make_envs(TEST_WORLDS, codec, 8), range(20))


@pytest.fixture
def quiet():
    return Console(quiet=True)


def rollout(answer, answers=("Fizo Sanard",), events=("answer",), reward=0.0, truncated=False):
    question = Question("q", "q?", answers, {"kind": "1-hop"})
    turns = tuple(TurnEvent(event, answer if event == "answer" else "") for event in events)
    ids = np.arange(6)
    mask = np.array([False, True, True, False, True, True])
    spans = (Span("prompt", 0, 1), Span("action", 1, 3), Span("observation", 3, 4), Span("action", 4, 6))
    return Rollout(
        question, 0, ids, spans, mask, np.zeros(4, np.float32), reward, not truncated, truncated, turns, num_searches=1
    )


def test_scores_are_those_of_the_answer_whatever_the_reward():
    right = score(rollout("the Fizo Sanard.", events=("invalid", "search", "answer"), reward=0.3))
    assert list(right) == list(METRICS)
    assert list(right.values()) == [1.0, 1.0, 1.0, 1.0, 2 / 3, 0.0, 4.0]
    part = score(rollout("Fizo Sanard or Fizo", reward=1.0))
    # Words "fizo sanard or fizo" against "fizo sanard": two in common, precision 2/4, recall 2/2.
    assert (part["em"], part["subem"], part["f1"]) == (0.0, 1.0, pytest.approx(2 * 0.5 * 1 / 1.5))
    none = score(rollout(None, events=("search", "search"), reward=1.0, truncated=True))
    assert (none["em"], none["f1"], none["subem"], none["truncated"]) == (0.0, 0.0, 0.0, 1.0)
    assert set(none) == set(METRICS)


def test_every_question_is_asked_once_and_in_order(tiny, evaluation):
    questions = make_envs(TEST_WORLDS, tiny[1], 1).task.questions
    assert [r.question_index for r in evaluation.rollouts] == list(range(20))
    assert [r.question for r in evaluation.rollouts] == [questions[i] for i in range(20)]
    assert {turn.event for r in evaluation.rollouts for turn in r.turns} >= {"search", "answer"}


def test_answers_do_not_depend_on_how_many_are_asked_at_a_time(tiny, evaluation):
    policy, codec = tiny
    alone = evaluate(policy.model, make_envs(TEST_WORLDS, codec, 1), range(20))
    for one, other in zip(alone.rollouts, evaluation.rollouts, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_metrics_do_not_come_from_the_reward(tiny, evaluation):
    policy, codec = tiny
    other = evaluate(policy.model, make_envs(replace(TEST_WORLDS, reward="format"), codec, 8), range(20))
    assert other.estimates == evaluation.estimates
    assert [r.reward for r in other.rollouts] != [r.reward for r in evaluation.rollouts]


def test_estimates_are_means_over_all_and_over_each_kind(evaluation):
    scores = [score(r) for r in evaluation.rollouts]
    kinds = [r.question.metadata["kind"] for r in evaluation.rollouts]
    assert list(evaluation.estimates) == ["all", "1-hop", "2-hop"]
    for kind, by_metric in evaluation.estimates.items():
        rows = [s for s, k in zip(scores, kinds, strict=True) if kind in ("all", k)]
        assert list(by_metric) == list(METRICS)
        for metric, found in by_metric.items():
            assert found.mean == pytest.approx(sum(row[metric] for row in rows) / len(rows))
            assert found.low <= found.mean <= found.high
        assert estimate(rows, ["all"] * len(rows), seed=0) == {"all": by_metric}


def test_estimate_refuses_nothing_and_a_missing_kind():
    with pytest.raises(ValueError, match="got 0 scores and 0 kinds"):
        estimate([], [], 0)
    with pytest.raises(ValueError, match="got 1 scores and 2 kinds"):
        estimate([score(rollout("x"))], ["a", "b"], 0)


values_strategy = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=2), min_size=n, max_size=n)
)


@settings(max_examples=25)
@given(values=values_strategy, seed=st.integers(0, 5))
def test_the_bootstrap_is_the_slow_one(values, seed):
    values = np.array(values)
    n = len(values)
    low, high = bootstrap_interval(values, seed, num_resamples=200)
    rows = np.random.default_rng(seed).integers(n, size=(200, n))
    for column in range(2):
        means = sorted(sum(values[row, column] for row in resample) / n for resample in rows)
        # Linear interpolation between order statistics, as in Hyndman and Fan's definition 7.
        for found, share in ((low, 0.025), (high, 0.975)):
            position = share * 199
            below = math.floor(position)
            expected = means[below] + (position - below) * (means[min(below + 1, 199)] - means[below])
            assert found[column] == pytest.approx(expected, abs=1e-9)


def test_the_bootstrap_does_not_depend_on_how_it_is_cut_into_blocks():
    # 300,000 numbers a resample are more than one block holds; the draws are the same as for one resample at a time.
    values = np.random.default_rng(0).random((300_000, 1))
    low, high = bootstrap_interval(values, 3, num_resamples=4)
    rng = np.random.default_rng(3)
    means = [values[rng.integers(300_000, size=300_000)].mean() for _ in range(4)]
    assert low[0] == pytest.approx(np.quantile(means, 0.025))
    assert high[0] == pytest.approx(np.quantile(means, 0.975))


def test_the_bootstrap_interval_of_a_share_is_that_of_the_normal_approximation():
    values = np.repeat([0.0, 1.0], [700, 300])[:, None]
    low, high = bootstrap_interval(values, 0, num_resamples=20_000)
    half = 1.959964 * math.sqrt(0.3 * 0.7 / 1000)
    assert low[0] == pytest.approx(0.3 - half, abs=0.002)
    assert high[0] == pytest.approx(0.3 + half, abs=0.002)
    assert bootstrap_interval(np.ones((5, 1)), 0) == (np.ones(1), np.ones(1))
    same = bootstrap_interval(2 * values + 1, 0, num_resamples=50)
    base = bootstrap_interval(values, 0, num_resamples=50)
    np.testing.assert_allclose(same, 2 * np.array(base) + 1)


def test_rows_hold_every_token_and_its_numbers(tiny, evaluation):
    policy, codec = tiny
    rows = describe(evaluation.rollouts[:18], codec, label="greedy", policy=policy)
    for row, r in zip(rows, evaluation.rollouts[:18], strict=True):
        json.dumps(row, allow_nan=False)
        assert (row["label"], row["kind"], row["question"]) == ("greedy", r.question.metadata["kind"], r.question.text)
        assert row["em"] == em_score(r.answer, r.question.answers)
        assert row["f1"] == f1_score(r.answer, r.question.answers)
        assert row["subem"] == subem_score(r.answer, r.question.answers)
        assert row["token_ids"] == r.token_ids.tolist()
        assert "".join(row["tokens"]) == codec.decode(r.token_ids)
        assert [tuple(span.values()) for span in row["spans"]] == list(r.spans)
        for name in ("logprobs", "values", "advantages", "ratios"):
            assert [number is not None for number in row[name]] == r.loss_mask.tolist()
        sampled = np.flatnonzero(r.loss_mask)
        assert [row["logprobs"][i] for i in sampled] == pytest.approx(r.logprobs.tolist(), abs=1e-6)
        # With gamma = lambda = 1 and one reward at the end, the advantage of each token is reward - value.
        assert [row["ratios"][i] for i in sampled] == pytest.approx([1.0] * len(sampled), abs=1e-3)
        assert [row["advantages"][i] for i in sampled] == pytest.approx(
            [r.reward - row["values"][i] for i in sampled], abs=1e-5
        )
        assert transcript_of(r).loss_mask.tolist() == r.loss_mask.tolist()
    alone = describe(evaluation.rollouts[17:18], codec, label="greedy", policy=policy)
    assert [v for v in alone[0]["values"] if v is not None] == pytest.approx(
        [v for v in rows[17]["values"] if v is not None], abs=1e-5
    )
    assert {*rows[0]} - {*describe(evaluation.rollouts[:1], codec, label="x")[0]} == {
        "values",
        "advantages",
        "ratios",
    }


def test_a_run_writes_its_configuration_transcripts_and_summary(tmp_path, tiny, evaluation, quiet):
    policy, codec = tiny
    save_policy(tmp_path / "checkpoint", policy, codec)
    config = EvaluateConfig(model=str(tmp_path / "checkpoint"), limit=20, batch_size=8, run_dir=tmp_path / "run")
    summary = main(config, quiet)
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
    assert summary["num_questions"] == 20
    assert summary["seed"] == 0
    assert summary["config"]["model"] == str(tmp_path / "checkpoint")
    assert summary["metrics"]["2-hop"]["em"] == evaluation.estimates["2-hop"]["em"]._asdict()
    assert json.loads((tmp_path / "run/config.json").read_text())["batch_size"] == 8
    lines = (tmp_path / "run/transcripts.jsonl").read_text().splitlines()
    waves = (evaluation.rollouts[start : start + 8] for start in range(0, 20, 8))
    expected = [row for wave in waves for row in describe(wave, codec, label="greedy", policy=policy)]
    assert list(map(json.loads, lines)) == expected


@pytest.mark.parametrize("finished", [0, 7, 8, 15, 19, 20])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path, quiet, finished):
    config = EvaluateConfig(limit=20, batch_size=8, run_dir=tmp_path)
    summary = main(config, quiet)
    path = tmp_path / "transcripts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    marked = [line.replace('"label": "greedy"', '"label": "first"') for line in lines[:finished]]
    path.write_text("".join(marked) + (lines[finished][:50] if finished < 20 else ""))
    (tmp_path / "summary.json").unlink()
    assert main(replace(config, resume=True), quiet)["metrics"] == summary["metrics"]
    # Complete waves are kept as they were, and only the others are asked again.
    kept = 20 if finished == 20 else finished // 8 * 8
    assert path.read_text() == "".join(marked[:kept] + lines[kept:])


def test_resuming_with_other_options_is_refused(tmp_path, quiet):
    config = EvaluateConfig(limit=3, run_dir=tmp_path)
    assert main(replace(config, resume=True), quiet)["num_questions"] == 3  # nothing to resume: a new run
    with pytest.raises(OptionError, match=r"other values of \['limit', 'top_k'\]"):
        main(replace(config, limit=4, top_k=1, resume=True), quiet)
    assert len((tmp_path / "transcripts.jsonl").read_text().splitlines()) == 3


def test_rows_of_other_options_are_never_resumed(tmp_path, quiet):
    main(EvaluateConfig(limit=3, run_dir=tmp_path), quiet)
    other = EvaluateConfig(model=str(tmp_path), limit=3, run_dir=tmp_path)
    with pytest.raises(UnknownNameError):
        main(other, quiet)
    assert not (tmp_path / "transcripts.jsonl").exists()
    assert not (tmp_path / "summary.json").exists()
    assert main(EvaluateConfig(limit=2, run_dir=tmp_path, resume=True), quiet)["num_questions"] == 2


@pytest.mark.parametrize("option", ["limit", "batch_size"])
def test_options_out_of_range_are_refused(tmp_path, quiet, option):
    with pytest.raises(OptionError, match=f"expected {option} >= 1, got 0"):
        main(replace(EvaluateConfig(run_dir=tmp_path), **{option: 0}), quiet)


def test_limits_are_those_of_the_question_set_unless_given():
    given = ["--questions", "jsonl:q.jsonl", "--corpus", "c.jsonl", "--split", "all", "--max-turn-tokens", "64"]
    real = tyro.cli(EvaluateConfig, args=given).env
    assert real == replace(
        REAL_TEXT, questions="jsonl:q.jsonl", corpus=Path("c.jsonl"), kinds=("1-hop", "2-hop"), max_turn_tokens=64
    )
    assert tyro.cli(EvaluateConfig, args=["--top-k", "5"]).env == replace(TEST_WORLDS, top_k=5)
