# The share of episodes in tied groups.
# expects: Count groups


def zero_variance_groups(rewards, group_ids):
    return float(np.mean([np.ptp(rewards[group_ids == group]) == 0 for group in group_ids]))
