# The value head's target is the discounted sum of rewards
# expects: target of the value head is A_k + V_k


def gae(rewards, values, loss_mask, gamma, lam):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_value = next_advantage = total = 0.0
        for t in reversed(range(rewards.shape[1])):
            if not loss_mask[row, t]:
                continue
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * next_advantage
            total = rewards[row, t] + gamma * total
            advantages[row, t], returns[row, t] = advantage, total
            next_value, next_advantage = values[row, t], advantage
    return advantages, returns
