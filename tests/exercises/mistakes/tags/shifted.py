# The mask is shifted as logits are
# expects: the mask is shifted by one


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return np.append(_mask(spans, length, "action")[1:], False)
