# Advantages are normalised over the batch
# expects: computed over the batch


def gae(
    rewards: np.ndarray, values: np.ndarray, loss_mask: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """See the starter file."""
    r, v = np.where(loss_mask, rewards, 0.0), np.where(loss_mask, values, 0.0)
    advantages = np.zeros(r.shape)
    next_value, next_advantage = np.zeros(len(r)), np.zeros(len(r))
    for t in reversed(range(r.shape[1])):
        sampled = loss_mask[:, t]
        delta = r[:, t] + gamma * next_value - v[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[sampled, t] = advantage[sampled]
        next_value = np.where(sampled, v[:, t], next_value)
        next_advantage = np.where(sampled, advantage, next_advantage)
    returns = np.where(loss_mask, advantages + v, 0.0)
    centred = advantages - advantages[loss_mask].mean() if loss_mask.any() else advantages
    return np.where(loss_mask, centred, 0.0), returns
