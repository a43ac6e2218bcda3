# The mask is multiplied in, which keeps NaN
# expects: NaN * 0 is NaN


def gae(rewards, values, loss_mask, gamma, lam):
    rewards, values = rewards * loss_mask, values * loss_mask
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
    return advantages * loss_mask, (advantages + values) * loss_mask
