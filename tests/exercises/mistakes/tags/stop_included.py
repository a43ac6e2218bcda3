# A span includes its stop
# expects: Like a slice, a span ends before it


def _mask(spans: list[tuple[str, int, int]], length: int, kind: str) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for name, start, stop in spans:
        if name == kind:
            mask[start : stop + 1] = True
    return mask
