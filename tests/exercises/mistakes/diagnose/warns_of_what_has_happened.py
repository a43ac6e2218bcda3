# Warns when exact match has already been low for long.
# expects: too late


def first_warning(metrics):
    em = metrics["rollout/em"]
    for i in range(9, len(em)):
        if max(em[: i + 1]) >= 0.1 and em[i - 9 : i + 1].mean() < 0.25 * max(em[: i + 1]):
            return i
    return None
