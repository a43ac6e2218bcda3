"""Tests that you can see. ``search-gym exercise check`` has more, with other numbers for every student."""

import numpy as np
from starter import gae


def test_one_turn_with_the_reward_at_its_end():
    rewards, values = np.array([[0.0, 0.0, 1.0]]), np.array([[0.5, 0.25, 0.75]])
    advantages, returns = gae(rewards, values, np.array([[True, True, True]]), gamma=1.0, lam=1.0)
    assert np.allclose(advantages, [[0.5, 0.75, 0.25]])
    assert np.allclose(returns, [[1.0, 1.0, 1.0]])


def test_with_lambda_0_an_advantage_is_the_error_of_one_step():
    rewards, values = np.array([[0.0, 0.0, 1.0]]), np.array([[0.5, 0.25, 0.75]])
    advantages, _ = gae(rewards, values, np.array([[True, True, True]]), gamma=0.5, lam=0.0)
    assert np.allclose(advantages, [[0.5 * 0.25 - 0.5, 0.5 * 0.75 - 0.25, 1.0 - 0.75]])


def test_retrieved_tokens_take_no_time():
    loss_mask = np.array([[False, True, False, False, True]])
    rewards = np.array([[np.nan, 0.0, np.nan, np.nan, 1.0]])
    values = np.array([[9.0, 0.5, 9.0, 9.0, 0.25]])
    advantages, returns = gae(rewards, values, loss_mask, gamma=0.5, lam=0.5)
    last = 1.0 - 0.25
    first = 0.5 * 0.25 - 0.5 + 0.5 * 0.5 * last
    assert np.allclose(advantages, [[0.0, first, 0.0, 0.0, last]])
    assert np.allclose(returns, [[0.0, first + 0.5, 0.0, 0.0, 1.0]])


def test_a_row_in_which_nothing_was_sampled_is_0():
    advantages, returns = gae(np.ones((1, 3)), np.ones((1, 3)), np.zeros((1, 3), dtype=bool), gamma=0.9, lam=0.9)
    assert not advantages.any()
    assert not returns.any()
