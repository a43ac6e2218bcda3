# The recursion runs over all columns of a response and the mask comes last
# expects: Jump over them


def gae(rewards, values, loss_mask, gamma, lam):
    advantages = np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_value = next_advantage = 0.0
        sampled = np.flatnonzero(loss_mask[row])
        for t in reversed(range(sampled[-1] + 1 if len(sampled) else 0)):
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantages[row, t] = next_advantage = delta + gamma * lam * next_advantage
            next_value = values[row, t]
    return np.where(loss_mask, advantages, 0.0), np.where(loss_mask, advantages + values, 0.0)
