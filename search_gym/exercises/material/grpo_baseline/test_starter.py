"""The visible tests of exercise 6. Run them with `pytest`; `search-gym exercise check grpo-baseline` asks more."""

import numpy as np
import pytest
from starter import coefficients, group_advantages, spread, zero_variance_groups

REWARDS = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
GROUP_IDS = np.array([7, 7, 3, 7, 3, 3])  # two groups of three, mixed


def test_grpo() -> None:
    a, b = (1 - 2 / 3) / (np.sqrt(1 / 3) + 1e-6), (0 - 2 / 3) / (np.sqrt(1 / 3) + 1e-6)
    np.testing.assert_allclose(group_advantages(REWARDS, GROUP_IDS), [a, b, b, a, a, a])


def test_without_the_standard_deviation() -> None:
    np.testing.assert_allclose(group_advantages(REWARDS, GROUP_IDS, False), np.array([1, -2, -2, 1, 1, 1]) / 3)


def test_leave_one_out() -> None:
    found = group_advantages(REWARDS, GROUP_IDS, False, True)
    np.testing.assert_allclose(found, [1 - 1 / 2, 0 - 1, 0 - 1, 1 - 1 / 2, 1 - 1 / 2, 1 - 1 / 2])


def test_a_group_of_one_keeps_its_reward() -> None:
    np.testing.assert_allclose(group_advantages(np.array([0.7, 1.0, 0.0]), np.array([1, 2, 2]))[0], 0.7)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_ties_teach_nothing(reward: float, leave_one_out: bool) -> None:
    found = group_advantages(np.full(3, reward), np.zeros(3, dtype=np.int64), True, leave_one_out)
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def test_zero_variance_groups() -> None:
    rewards, group_ids = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0]), np.array([1, 1, 2, 2, 3, 3, 3])
    assert zero_variance_groups(rewards, group_ids) == pytest.approx(2 / 3)


def test_spread() -> None:
    mask = np.array([[True, False, True], [False, True, False]])
    np.testing.assert_allclose(spread(np.array([2.0, -1.0]), mask), [[2, 0, 2], [0, -1, 0]])


def test_coefficients() -> None:
    rewards, group_ids = np.array([1.0, 0.0]), np.array([0, 0])
    mask = np.array([[True, False, False, False], [True, True, False, True]])  # right and short, wrong and long
    a = 0.5 / (np.sqrt(0.5) + 1e-6)
    grpo = coefficients(rewards, group_ids, mask, "grpo", 8)
    np.testing.assert_allclose(grpo, [[a / 2, 0, 0, 0], [-a / 6, -a / 6, 0, -a / 6]])
    rloo = coefficients(rewards, group_ids, mask, "rloo", 8)
    np.testing.assert_allclose(rloo, [[1 / 4, 0, 0, 0], [-1 / 4, -1 / 4, 0, -1 / 4]])
    dr_grpo = coefficients(rewards, group_ids, mask, "dr_grpo", 8)
    np.testing.assert_allclose(dr_grpo, np.array([[1, 0, 0, 0], [-1, -1, 0, -1]]) / 32)
