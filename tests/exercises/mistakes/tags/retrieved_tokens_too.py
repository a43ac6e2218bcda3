# Everything after the prompt is trained on
# expects: What was retrieved was not sampled

import numpy as np


def _mask(spans: list[tuple[str, int, int]], length: int, kind: str) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for name, start, stop in spans:
        if name == kind:
            mask[start:stop] = True
    return mask


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return _mask(spans, length, "action") | _mask(spans, length, "observation")
