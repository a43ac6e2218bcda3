# The next value is that of the next column, whoever wrote it
# expects: read from the next column


def gae(rewards, values, loss_mask, gamma, lam):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_advantage = 0.0
        for t in reversed(range(rewards.shape[1])):
            if not loss_mask[row, t]:
                continue
            next_value = values[row, t + 1] if t + 1 < rewards.shape[1] else 0.0
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * next_advantage
            advantages[row, t], returns[row, t] = advantage, advantage + values[row, t]
            next_advantage = advantage
    return advantages, returns
