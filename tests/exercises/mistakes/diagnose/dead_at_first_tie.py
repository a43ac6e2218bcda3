# The first update in which all groups were tied.
# expects: the first tied update


def dead_since(metrics):
    tied = metrics.get("rollout/zero_variance_groups", np.zeros(0))
    found = np.flatnonzero(tied == 1)
    return int(found[0]) if found.size else None
