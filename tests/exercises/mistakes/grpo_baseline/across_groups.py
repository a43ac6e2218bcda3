# The mean and the standard deviation of the whole batch.
# expects: mean of the whole batch


def group_advantages(rewards, group_ids, normalize_std=True, leave_one_out=False):
    advantages = np.array(rewards, dtype=float)
    for _ in np.unique(group_ids):
        members = np.ones(len(rewards), dtype=bool)
        r, n = rewards[members], members.sum()
        if n == 1:
            continue
        baseline = (r.sum() - r) / (n - 1) if leave_one_out else r.mean()
        advantages[members] = r - baseline
        if normalize_std:
            advantages[members] /= r.std(ddof=1) + 1e-6
    return advantages
