# A search anywhere comes before an answer
# expects: a search was looked for before an answer
import re

import numpy as np


def parse_turn(text: str) -> tuple[str, str]:
    for event in ("search", "answer"):
        pair = re.search(f"<{event}>(.*?)</{event}>", text, re.DOTALL)
        if pair:
            return event, pair[1].strip()
    return ("invalid", "")


def turn_length(pieces: list[str]) -> int:
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if "</search>" in text or "</answer>" in text:
            return count
    return len(pieces)


def _mask(spans: list[tuple[str, int, int]], length: int, kind: str) -> np.ndarray:
    mask = np.zeros(length, dtype=bool)
    for name, start, stop in spans:
        if name == kind:
            mask[start:stop] = True
    return mask


def loss_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return _mask(spans, length, "action")


def info_mask(spans: list[tuple[str, int, int]], length: int) -> np.ndarray:
    return _mask(spans, length, "observation")
