# Groups are cut out of the batch by position; group_ids only says how many there are.
# expects: side by side


def group_advantages(rewards, group_ids, normalize_std=True, leave_one_out=False):
    groups = rewards.reshape(len(np.unique(group_ids)), -1)
    n = groups.shape[1]
    centred = groups - groups.mean(axis=1, keepdims=True)
    if leave_one_out:
        centred = centred * n / (n - 1)
    if normalize_std:
        centred = centred / (groups.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    return centred.ravel()
