# True means that a token is masked out
# expects: the other polarity


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return ~_mask(spans, length, "action")
