# The caller's rewards are overwritten
# expects: changed its argument rewards in place


def gae(rewards, values, loss_mask, gamma, lam):
    rewards[~loss_mask] = 0.0
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_value = next_advantage = 0.0
        for t in reversed(range(rewards.shape[1])):
            if not loss_mask[row, t]:
                continue
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * next_advantage
            advantages[row, t], returns[row, t] = advantage, advantage + values[row, t]
            next_value, next_advantage = values[row, t], advantage
    return advantages, returns
