# 1e-6 is added to the variance.
# expects: inside the root


def group_advantages(rewards, group_ids, normalize_std=True, leave_one_out=False):
    advantages = np.array(rewards, dtype=float)
    for group in np.unique(group_ids):
        members = group_ids == group
        r, n = rewards[members], members.sum()
        if n == 1:
            continue
        baseline = (r.sum() - r) / (n - 1) if leave_one_out else r.mean()
        advantages[members] = r - baseline
        if normalize_std:
            advantages[members] /= np.sqrt(r.var(ddof=1) + 1e-6)
    return advantages
