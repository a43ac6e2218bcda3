"""Tinker cookbook: its rollout loop and its making of training data, on sampled ids."""

from __future__ import annotations

import asyncio
import pickle

import numpy as np
import pytest
from adapter_episodes import CODEC, ENV_ID, OPTIONS, expect, make_env, run_page

pytest.importorskip("tinker_cookbook", reason="needs Tinker's cookbook: make test-adapters")

from tinker_cookbook.completers import TokenCompleter, TokensWithLogprobs
from tinker_cookbook.rl.data_processing import trajectory_to_data
from tinker_cookbook.rl.rollouts import do_group_rollout, do_single_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, InitialObservationOverflow

from search_gym.adapters._play import SharedTask
from search_gym.adapters.tinker import SearchDataset, SearchGroupBuilder, SearchTokenEnv
from search_gym.errors import ActionError, OptionError

SHARED = SharedTask.of(ENV_ID, OPTIONS)


class Script(TokenCompleter):
    """Says the turns of each question, cut into chunks of at most ``size``, with made-up log-probabilities."""

    def __init__(self, episodes, size=10**6):
        self.chunks = {
            tuple(one.prompt): [turn[i : i + size] for turn in one.turns for i in range(0, len(turn), size)]
            for one in episodes
        }
        self.stops = []
        self.seen = {}

    async def __call__(self, model_input, stop, **options):
        ids = tuple(model_input.to_ints())
        self.stops.append(stop)
        prompt = next(prompt for prompt in self.chunks if ids[: len(prompt)] == prompt)
        number = self.seen.setdefault((id(asyncio.current_task()), prompt), 0)
        self.seen[id(asyncio.current_task()), prompt] += 1
        chunk = self.chunks[prompt][number]
        return TokensWithLogprobs(tokens=list(chunk), maybe_logprobs=[-0.001 * i for i in chunk])


@pytest.mark.parametrize("size", [10**6, 7, 1])
def test_an_episode_becomes_one_datum_with_the_mask_of_the_transcript(size):
    expected = expect(4)
    script = Script([expected], size)
    env = SearchTokenEnv(SHARED, 4)
    assert isinstance(env, Env)
    trajectory = asyncio.run(do_single_rollout(script, env))
    assert trajectory.stop_reason == "completed"
    assert sum(step.reward for step in trajectory.transitions) == 1.0
    assert trajectory.final_ob.to_ints() == expected.token_ids
    assert script.stops[0] == ["</search>", "</answer>", "<eos>"]
    (datum,) = trajectory_to_data(trajectory, 0.5)
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    mask = datum.loss_fn_inputs["mask"].to_numpy()
    assert datum.model_input.to_ints() == expected.token_ids[:-1]
    assert targets.tolist() == expected.token_ids[1:]
    assert mask.astype(bool).tolist() == expected.loss_mask[1:]
    logprobs = np.where(mask > 0, -0.001 * targets, 0.0)
    np.testing.assert_allclose(datum.loss_fn_inputs["logprobs"].to_numpy(), logprobs, atol=1e-6)
    assert datum.loss_fn_inputs["advantages"].to_numpy().tolist() == (0.5 * mask).tolist()


def test_groups_are_played_side_by_side():
    dataset = SearchDataset(2, 3, env_id=ENV_ID, options=OPTIONS, seed=1)
    questions = make_env().task.questions
    assert len(dataset) == len(questions) // 2
    chosen = [builder.question_index for i in range(len(dataset)) for builder in dataset.get_batch(i)]
    assert len({*chosen}) == len(chosen)
    builder = pickle.loads(pickle.dumps(dataset.get_batch(0)[0]))
    assert isinstance(builder, EnvGroupBuilder)
    assert builder == SearchGroupBuilder(chosen[0], 3, ENV_ID, OPTIONS)
    expected = expect(chosen[0])
    group = asyncio.run(do_group_rollout(builder, Script([expected])))
    assert group.get_total_rewards() == [1.0, 1.0, 1.0]
    for trajectory in group.trajectories_G:
        assert trajectory.final_ob.to_ints() == expected.token_ids
        assert trajectory.transitions[-1].metrics["num_searches"] == 1.0
    assert [step.metrics.get("turn/invalid") for step in group.trajectories_G[0].transitions] == [None, 1.0, None]
    for size, group_size in ((0, 1), (10**6, 1), (1, 0)):
        with pytest.raises(OptionError, match="expected batch_size in"):
            SearchDataset(size, group_size, env_id=ENV_ID, options=OPTIONS)


def test_what_would_be_trained_on_but_was_not_read_is_refused():
    async def play():
        env = SearchTokenEnv(SHARED, 0)
        await env.initial_observation()
        await env.step([*CODEC.encode("<search>a</search>").tolist(), 65])

    with pytest.raises(ActionError, match="19 ids of which 18 belong to it; do: sample with the stop condition"):
        asyncio.run(play())


def test_how_episodes_end_is_told_in_tinkers_words():
    async def play(options, turns):
        env = SearchTokenEnv(SharedTask.of(ENV_ID, {**OPTIONS, **options}), 0)
        await env.initial_observation()
        for _ in range(turns):
            result = await env.step([65, CODEC.eos_id])
        return result.episode_done, result.metrics

    assert asyncio.run(play({"max_turns": 1}, 2))[1]["stop/max_turns"] == 1.0
    prompt = len(expect(0).prompt)
    options = {"max_context_tokens": prompt + 20, "max_turn_tokens": 10}
    assert asyncio.run(play(options, 1))[1]["stop/context_overflow"] == 1.0


def test_a_question_that_does_not_fit_overflows():
    env = SearchTokenEnv(SharedTask.of(ENV_ID, {**OPTIONS, "max_context_tokens": 20, "max_turn_tokens": 10}), 0)
    found = asyncio.run(env.initial_observation())
    assert isinstance(found, InitialObservationOverflow)
    assert found.metrics == {"stop/max_tokens": 1.0}


def test_the_code_of_the_page_runs():
    names = run_page("tinker")
    assert len(names["dataset"].get_batch(0)) == 32
    group = asyncio.run(names["builder"].make_envs())
    assert len(group) == 8
    assert all(isinstance(env, SearchTokenEnv) for env in group)
