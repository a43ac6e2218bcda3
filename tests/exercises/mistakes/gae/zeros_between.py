# Retrieved tokens are set to zero and still take time
# expects: they take no time


def gae(rewards, values, loss_mask, gamma, lam):
    r, v = np.where(loss_mask, rewards, 0.0), np.where(loss_mask, values, 0.0)
    advantages = np.zeros(r.shape)
    advantage = np.zeros(len(r))
    following = np.zeros(len(r))
    for t in reversed(range(r.shape[1])):
        advantage = r[:, t] + gamma * following - v[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
        following = v[:, t]
    return np.where(loss_mask, advantages, 0.0), np.where(loss_mask, advantages + v, 0.0)
