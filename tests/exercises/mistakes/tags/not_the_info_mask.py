# The loss mask is the opposite of the info mask
# expects: the opposite of the info mask


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    """See the starter file."""
    return ~_mask(spans, length, "observation")
