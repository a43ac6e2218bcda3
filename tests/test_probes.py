"""Every algorithm climbs the ladder of ``tests/probes.py``.

A new algorithm is one file in ``agents/`` and is found here without being named. It provides ``train(config, *,
make_envs, log)``, which returns the policy, and ``PRESETS``, whose ``"default"`` is a `TrainConfig` that learns on
``probe_config``'s scale: 64 rollouts a round in four mini-batches, learning rate 5e-3, no KL.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from probes import PROBES, Chain, Probe, make_base, play, probe_config

from agents import algorithms
from agents.checkpoint import load_policy
from agents.rollout import Rollout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("probes") / "base")


@pytest.fixture(scope="module")
def rewards_of_base(base: Path) -> dict[str, float]:
    policy, _ = load_policy(base)
    return {probe.name: mean_reward(play(policy, probe, repeats=episodes(probe))) for probe in PROBES}


def mean_reward(rollouts: list[Rollout]) -> float:
    return float(np.mean([rollout.reward for rollout in rollouts]))


def episodes(probe: Probe) -> int:
    """So many of each question that there are 128."""
    return 128 // len(probe.questions)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
@pytest.mark.parametrize("name", algorithms.names())
def test_an_algorithm_solves_a_probe(
    name: str, probe: Probe, base: Path, rewards_of_base: dict[str, float], tmp_path: Path
) -> None:
    assert rewards_of_base[probe.name] < probe.before
    algorithm = algorithms.load(name)
    config = probe_config(algorithm.PRESETS["default"], base, tmp_path, updates=probe.updates)
    policy = algorithm.train(config, make_envs=probe.make_envs)
    rollouts = play(policy, probe, repeats=episodes(probe))
    assert mean_reward(rollouts) > probe.after
    assert np.mean([rollout.num_searches for rollout in rollouts]) >= probe.after * probe.searches
    if probe.searches:
        # Without documents the answer cannot be had: the policy has learnt to search, not the answers.
        assert mean_reward(play(policy, probe, silent=True)) < probe.before


@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe.searches], ids=lambda probe: probe.name)
def test_the_answer_is_as_many_searches_away_as_the_probe_says(probe: Probe) -> None:
    for question in probe.questions:
        word, seen = question.question_id, []
        for _ in range(probe.searches):
            assert question.answers[0] not in (question.text, *seen)
            ((document,),) = Chain().search([word], 1)
            word = document.text
            seen.append(word)
        assert question.answers == (word,)
