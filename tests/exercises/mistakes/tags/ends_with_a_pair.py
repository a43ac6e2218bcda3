# A turn ends with a whole pair
# expects: whether it was opened or not
import re

import numpy as np

PAIR = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)


def parse_turn(text: str) -> tuple[str, str]:
    """See the starter file."""
    pair = PAIR.search(text)
    return (pair[1], pair[2].strip()) if pair else ("invalid", "")


def turn_length(pieces: list[str]) -> int:
    """See the starter file."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if PAIR.search(text):
            return count
    return len(pieces)


def _mask(spans: list[tuple[str, int, int]], length: int, kind: str) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for name, start, stop in spans:
        if name == kind:
            mask[start:stop] = True
    return mask


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    """See the starter file."""
    return _mask(spans, length, "action")


def info_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    """See the starter file."""
    return _mask(spans, length, "observation")
