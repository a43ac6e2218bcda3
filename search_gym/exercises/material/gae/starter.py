"""Exercise 4: advantages across turns. Fill in `gae`; page.md says what it is. You need numpy alone."""

import numpy as np


def gae(
    rewards: np.ndarray, values: np.ndarray, loss_mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Generalised advantage estimation over the tokens that the policy sampled (arXiv 1506.02438, equation 16).

    Number the sampled tokens of a row k = 0 .. n - 1, whatever lies between them, and let V_n = 0:

        delta_k = r_k + gamma V_{k+1} - V_k
        A_k     = delta_k + gamma lam A_{k+1},    A_n = 0

    Args:
        rewards: (B, T) float64, the reward of each token. Outside ``loss_mask`` it may be anything, NaN included.
        values: (B, T) float64, the value of the state in which each token was chosen; outside as for rewards.
        loss_mask: (B, T) bool, True where the policy sampled the token. A row without any is possible.
        gamma: discount of one sampled token, in [0, 1].
        lam: GAE's lambda, in [0, 1].

    Returns:
        Advantages A_k and returns A_k + V_k, two new arrays (B, T) float64, both 0 where ``loss_mask`` is False.
    """
    raise NotImplementedError
