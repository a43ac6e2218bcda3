# The prompt is in the mask
# expects: the prompt is in the mask


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    """See the starter file."""
    return _mask(spans, length, "action") | _mask(spans, length, "prompt")
