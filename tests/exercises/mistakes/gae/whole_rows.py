# The recursion runs through whole rows
# expects: Jump over what was not sampled


def gae(
    rewards: np.ndarray, values: np.ndarray, loss_mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the starter file."""
    r, v = rewards, values
    advantages = np.zeros(r.shape)
    next_value, next_advantage = np.zeros(len(r)), np.zeros(len(r))
    for t in reversed(range(r.shape[1])):
        sampled = np.ones(len(r), dtype=bool)
        delta = r[:, t] + gamma * next_value - v[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[sampled, t] = advantage[sampled]
        next_value = np.where(sampled, v[:, t], next_value)
        next_advantage = np.where(sampled, advantage, next_advantage)
    return np.where(loss_mask, advantages, 0.0), np.where(loss_mask, advantages + v, 0.0)
