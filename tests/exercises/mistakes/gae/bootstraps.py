# The last token bootstraps from its own value, as if the episode went on
# expects: V_n = 0


def gae(rewards, values, loss_mask, gamma, lam):
    advantages, returns = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for row in range(len(rewards)):
        next_value = values[row, loss_mask[row]][-1] if loss_mask[row].any() else 0.0
        next_advantage = 0.0
        for t in reversed(range(rewards.shape[1])):
            if not loss_mask[row, t]:
                continue
            delta = rewards[row, t] + gamma * next_value - values[row, t]
            advantage = delta + gamma * lam * next_advantage
            advantages[row, t], returns[row, t] = advantage, advantage + values[row, t]
            next_value, next_advantage = values[row, t], advantage
    return advantages, returns
