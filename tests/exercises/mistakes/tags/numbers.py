# The mask is of ones and zeros
# expects: expected booleans


def _mask(spans: list[tuple[str, int, int]], length: int, kind: str) -> np.ndarray:
    mask = np.zeros(length)
    for name, start, stop in spans:
        if name == kind:
            mask[start:stop] = True
    return mask
