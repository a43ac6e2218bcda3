"""The visible tests of exercise 5. Run them with `pytest`; `search-gym exercise check clipped-loss` asks more."""

import numpy as np
import pytest
from starter import clip_fraction, clipped_loss, k3, token_weights, whiten

LOSS_MASK = np.array([[False, True, True, True], [True, True, False, False]])


def one_token(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss and derivative of a single token that has this ratio, clipped to [0.8, 1.2]."""
    logprobs, old = np.array([[np.log(0.4 * ratio)]]), np.array([[np.log(0.4)]])
    loss, gradient = clipped_loss(
        logprobs, old, np.array([[advantage]]), np.array([[True]]), np.array([[1.0]]), 0.2, 0.2
    )
    return float(loss), float(gradient[0, 0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "derivative"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # already likelier than the clip pays for
        (0.5, 2.0, -1.0, -1.0),  # a good token that has become rare: nothing stops the way back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_one_token(ratio: float, advantage: float, loss: float, derivative: float) -> None:
    assert one_token(ratio, advantage) == pytest.approx((loss, derivative))


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    logprobs, old, advantages = rng.normal(-1.0, 0.2, (3, 2, 4))
    weights = token_weights(LOSS_MASK, "token-mean")
    loss, gradient = clipped_loss(logprobs, old, advantages, LOSS_MASK, weights, 0.2, 0.2)
    for array in (logprobs, old, advantages):
        array[~LOSS_MASK] = np.nan
    again, gradient_again = clipped_loss(logprobs, old, advantages, LOSS_MASK, weights, 0.2, 0.2)
    assert again == pytest.approx(loss)
    np.testing.assert_allclose(gradient_again, gradient)
    assert (gradient[~LOSS_MASK] == 0).all()


def test_the_derivative_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(1)
    logprobs, old, advantages = rng.normal(-1.0, 0.3, (3, 2, 4))
    weights = token_weights(LOSS_MASK, "sequence-mean")
    _, gradient = clipped_loss(logprobs, old, advantages, LOSS_MASK, weights, 0.2, 0.2)
    for place in np.ndindex(2, 4):
        step = np.zeros((2, 4))
        step[place] = 1e-6
        above, _ = clipped_loss(logprobs + step, old, advantages, LOSS_MASK, weights, 0.2, 0.2)
        below, _ = clipped_loss(logprobs - step, old, advantages, LOSS_MASK, weights, 0.2, 0.2)
        assert gradient[place] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_weights() -> None:
    np.testing.assert_allclose(token_weights(LOSS_MASK, "token-mean"), LOSS_MASK / 5)
    expected = [[0, 1 / 6, 1 / 6, 1 / 6], [1 / 4, 1 / 4, 0, 0]]
    np.testing.assert_allclose(token_weights(LOSS_MASK, "sequence-mean"), expected)


def test_whitened_advantages() -> None:
    advantages = np.array([[100.0, 1.0, 2.0, 3.0], [4.0, 5.0, 100.0, 100.0]])
    white = whiten(advantages, LOSS_MASK)
    assert white[LOSS_MASK].mean() == pytest.approx(0.0)
    assert white[LOSS_MASK].std(ddof=1) == pytest.approx(1.0)
    assert (white[~LOSS_MASK] == 0).all()


def test_clip_fraction() -> None:
    ratios = np.array([[9.0, 1.5, 1.5, 1.0], [0.5, 0.5, 9.0, 9.0]])
    advantages = np.array([[1.0, 1.0, -1.0, 1.0], [1.0, -1.0, 1.0, 1.0]])
    old = np.full((2, 4), -3.0)
    weights = token_weights(LOSS_MASK, "token-mean")
    assert clip_fraction(np.log(ratios) + old, old, advantages, LOSS_MASK, weights, 0.2, 0.2) == pytest.approx(2 / 5)


def test_k3() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    estimates = k3(np.log(p), np.log(q))
    assert (estimates >= 0).all()
    assert (p * estimates).sum() == pytest.approx((p * np.log(p / q)).sum())  # its mean over tokens of pi is the KL
