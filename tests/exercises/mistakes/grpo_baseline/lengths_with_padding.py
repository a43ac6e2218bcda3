# An episode is averaged over T columns.
# expects: padding and documents counted


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
            advantages[members] /= r.std(ddof=1) + 1e-6
    return advantages


def coefficients(rewards, group_ids, loss_mask, algorithm, max_tokens):
    advantages = group_advantages(rewards, group_ids, algorithm == "grpo", algorithm == "rloo")[:, None]
    if algorithm == "grpo":
        return advantages * loss_mask / loss_mask.shape[1] / len(rewards)
    if algorithm == "rloo":
        return advantages * loss_mask / loss_mask.sum()
    return advantages * loss_mask / (len(rewards) * max_tokens)
