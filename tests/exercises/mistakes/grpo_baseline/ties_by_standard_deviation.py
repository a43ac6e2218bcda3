# A group is tied when its standard deviation is exactly 0.
# expects: exactly 0


def zero_variance_groups(rewards, group_ids):
    return float(np.mean([np.std(rewards[group_ids == group]) == 0 for group in np.unique(group_ids)]))
