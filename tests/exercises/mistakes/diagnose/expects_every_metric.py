# A run without groups has no such metric.
# expects: KeyError


def dead_since(metrics):
    alive = np.flatnonzero(metrics["rollout/zero_variance_groups"] != 1)
    start = int(alive[-1]) + 1 if alive.size else 0
    return start if len(metrics["rollout/em"]) - start >= 5 else None
