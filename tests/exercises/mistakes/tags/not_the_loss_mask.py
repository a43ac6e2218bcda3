# The information mask is whatever the policy did not sample
# expects: the opposite of the loss mask


def info_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return ~_mask(spans, length, "action")
