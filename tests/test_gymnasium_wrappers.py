"""Gymnasium's own wrappers and vector environments around ours: the episodes are those of the bare environment."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from search_gym.wrappers import MacroActions

ID = "search_gym:search_gym/TinyWiki-v0"  # the module before the colon is imported, in new processes, too
OPTIONS = {"question_options": {"kinds": ["1-hop"], "num_questions": 8}, "top_k": 1}
make = partial(gym.make, ID, **OPTIONS)


def macro() -> MacroActions:
    return MacroActions(make(), 4, 2)


def play(envs: gym.vector.VectorEnv, turns: list[str]) -> list[tuple]:
    """What the environments say to the same turns, all of them in every slot."""
    codec = make().unwrapped.task.codec
    observations, _ = envs.reset(seed=[3, 4])
    found = [tuple(map(tuple, observations))]
    for turn in turns:
        observations, rewards, terminated, truncated, _ = envs.step([codec.encode(turn)] * 2)
        found.append((tuple(map(tuple, observations)), *(x.tolist() for x in (rewards, terminated, truncated))))
    envs.close()
    return found


TURNS = ["<search> birthplace </search>", "no tag at all", "<answer> nobody </answer>"]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_play_what_one_process_plays(context):
    expected = play(SyncVectorEnv([make, make]), TURNS)
    assert expected[-1][2] == [True, True]
    # Token sequences have no fixed size, so there is no memory to share.
    assert play(AsyncVectorEnv([make, make], shared_memory=False, context=context), TURNS) == expected


def test_shared_memory_is_refused_for_what_has_no_fixed_size():
    with pytest.raises(Exception, match="shared_memory=False"):
        AsyncVectorEnv([make, make])


def test_views_with_arrays_of_a_fixed_size_share_memory():
    sync, processes = SyncVectorEnv([macro, macro]), AsyncVectorEnv([macro, macro])
    expected, found = sync.reset(seed=1)[0], processes.reset(seed=1)[0]
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])
    for ours, theirs in zip(sync.step(np.array([0, 1]))[1:4], processes.step(np.array([0, 1]))[1:4], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    sync.close()
    processes.close()


def test_order_is_enforced_and_the_checker_has_nothing_to_say(recwarn):
    env = gym.wrappers.OrderEnforcing(gym.wrappers.PassiveEnvChecker(make().unwrapped))
    codec = env.get_wrapper_attr("task").codec
    with pytest.raises(ResetNeeded):
        env.step(codec.encode(TURNS[0]))
    env.reset(seed=0)
    for turn in TURNS:
        *_, terminated, _, _ = env.step(codec.encode(turn))
    assert terminated
    assert not recwarn.list


def test_statistics_of_vectors_count_steps_and_rewards():
    envs = gym.wrappers.vector.RecordEpisodeStatistics(SyncVectorEnv([make, make]))
    codec = make().unwrapped.task.codec
    envs.reset(seed=0)
    envs.step([codec.encode(TURNS[0])] * 2)
    *_, infos = envs.step([codec.encode(TURNS[2])] * 2)
    assert infos["episode"]["l"].tolist() == [2, 2]
    assert infos["episode"]["r"].tolist() == [0.0, 0.0]
    envs.close()
