"""Rejection sampling keeps right episodes only, and learns from exactly those."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.baselines import rejection_sampling, sft
from agents.baselines.no_search import no_search_envs
from agents.baselines.rejection_sampling import RejectionSamplingConfig, accept, is_right
from agents.rollout import Rollout, TurnEvent
from agents.supervised import FitConfig
from agents.tasks import EnvConfig
from search_gym import Question
from search_gym.errors import OptionError
from tests.real_text import real_text  # noqa: F401

ONE_HOP = EnvConfig(kinds=("1-hop",))


def rollout(answer, events, tokens, index=0):
    turns = tuple(TurnEvent(event, "q") for event in events)
    turns += (TurnEvent("answer", answer),) if answer is not None else ()
    ids = np.array([0, *tokens])
    return Rollout(
        question=Question("q", "?", ("gold", "second")),
        question_index=index,
        token_ids=ids,
        spans=(),
        loss_mask=ids > 0,
        logprobs=np.zeros(len(tokens), dtype=np.float32),
        reward=0.0,
        terminated=answer is not None,
        truncated=answer is None,
        turns=turns,
        num_searches=events.count("search"),
    )


EPISODES = st.tuples(
    st.sampled_from([None, "gold", "The Second!", "other"]),
    st.lists(st.sampled_from(["search", "invalid"]), max_size=3),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 2),
)


@given(st.lists(EPISODES, max_size=12), st.booleans())
def test_what_is_kept_is_right_and_kept_once(fields, valid_only):
    episodes = [rollout(*values) for values in fields]
    kept = accept(episodes, valid_only=valid_only)
    keys = [(r.question_index, r.token_ids.tolist()) for r in kept]
    expected = []
    for r in episodes:
        right = r.turns and r.turns[-1].event == "answer" and r.turns[-1].content in ("gold", "The Second!")
        valid = not any(turn.event == "invalid" for turn in r.turns)
        key = (r.question_index, r.token_ids.tolist())
        if right and (valid or not valid_only) and key not in expected:
            expected.append(key)
    assert keys == expected
    assert all(is_right(r) for r in kept)


def test_rounds_of_it_make_right_answers_frequent(tmp_path):
    config = RejectionSamplingConfig(
        env=ONE_HOP, rounds=3, questions_per_round=160, samples_per_question=3, run_dir=tmp_path
    )
    rejection_sampling.train(config)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    em = [row["rollout/em"] for row in rows]
    assert 0 < em[0] < em[1] < em[2]
    for row in rows:
        # Right episodes that are invalid somewhere, or repeat another, are not kept.
        assert 0 < row["rollout/kept"] <= row["rollout/em"] * 480
        assert 0 < row["rollout/questions_solved"] <= row["rollout/kept"] / 160
    assert (tmp_path / "checkpoint/model.safetensors").exists()


def test_a_run_repeats_itself(tmp_path):
    config = RejectionSamplingConfig(
        env=ONE_HOP, questions_per_round=64, samples_per_question=3, fit=FitConfig(epochs=1), run_dir=tmp_path / "a"
    )
    one = rejection_sampling.train(config).model.state_dict()
    same = rejection_sampling.train(replace(config, run_dir=tmp_path / "b")).model.state_dict()
    other = rejection_sampling.train(replace(config, seed=2, run_dir=tmp_path / "c")).model.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_round_without_a_right_episode_is_an_error(tmp_path):
    config = RejectionSamplingConfig(
        env=EnvConfig(kinds=("2-hop",)), questions_per_round=4, samples_per_question=2, run_dir=tmp_path
    )
    with pytest.raises(OptionError, match="some of 8 episodes of round 1 to be right, got none; do: raise questions"):
        rejection_sampling.train(config, make_envs=no_search_envs)


@pytest.mark.parametrize("option", ["rounds", "questions_per_round", "samples_per_question", "num_envs"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(OptionError, match=f"expected {option} >= 1, got 0"):
        RejectionSamplingConfig(**{option: 0})


def test_the_command_line_trains_and_says_what_went_wrong(tmp_path, capsys):
    args = ["--questions-per-round", "4", "--samples-per-question", "1", "--env.kinds", "4-hop"]
    with pytest.raises(SystemExit, match="error: expected some of 4 episodes of round 1 to be right"):
        rejection_sampling.main([*args, "--run-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        rejection_sampling.main(["--help"])
    assert "more than one is expert iteration" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_any_causal_language_model_and_any_questions(real_text):  # noqa: F811
    """A model that has memorised some answers is right at times, and more often afterwards."""
    path, env = real_text
    fit = FitConfig(epochs=90, batch_size=4, learning_rate=1e-2)
    sft.train(sft.SFTConfig(env=env, form="direct", model=str(path / "model"), fit=fit, run_dir=path / "sft"))
    config = RejectionSamplingConfig(
        env=env,
        model=str(path / "sft/checkpoint"),
        rounds=2,
        questions_per_round=4,
        samples_per_question=8,
        fit=replace(fit, epochs=20),
        run_dir=path / "run",
    )
    rejection_sampling.train(config)
    first, second = (json.loads(line) for line in (path / "run/metrics.jsonl").read_text().splitlines())
    assert 0 < first["rollout/em"] < second["rollout/em"]
