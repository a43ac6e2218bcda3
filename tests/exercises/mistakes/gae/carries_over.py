# The variables of the recursion are set to zero once, before all rows
# expects: what the row before it left


def gae(rewards, values, loss_mask, gamma, lam):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    next_value = next_advantage = 0.0
    for row in range(len(rewards)):
        for t in reversed(range(rewards.shape[1])):
            if not loss_mask[row, t]:
                continue
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * next_advantage
            advantages[row, t], returns[row, t] = advantage, advantage + values[row, t]
            next_value, next_advantage = values[row, t], advantage
    return advantages, returns
