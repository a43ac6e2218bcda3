"""Where a turn ends, token by token and for many turns at once: an automaton over the texts of tokens.

``closes_turn`` looks for ``</search>`` and ``</answer>`` in a turn's text. Read character by character, that is the
automaton of Aho and Corasick (1975), which is simple here: "<" begins either tag and comes nowhere else in them. One
table lookup a token follows it on any device.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from search_gym.codec import TokenIds

CLOSING_TAGS = ("</search>", "</answer>")
# What has been read of a tag, "" first; the whole of one is the last state, which is never left.
_PREFIXES = ("", *sorted({tag[:n] for tag in CLOSING_TAGS for n in range(1, len(tag))}, key=len))
_STATES = {prefix: state for state, prefix in enumerate(_PREFIXES)}
CLOSED = len(_PREFIXES)
"""The state of a turn that has ended."""

_TABLES: WeakKeyDictionary[Decodes, npt.NDArray[np.uint8]] = WeakKeyDictionary()


class Decodes(Protocol):
    """The part of a codec that is needed here."""

    @property
    def vocab_size(self) -> int: ...
    def decode(self, ids: TokenIds, /) -> str: ...


def transitions(codec: Decodes) -> npt.NDArray[np.uint8]:
    """(CLOSED + 1, vocab_size): the state after a state, the row, and a token, the column. A turn begins in state 0.

    A codec whose texts of tokens are not put together one after the other may differ at a tag's edges; whoever follows
    the table asks ``closes_turn`` when a turn has ended.
    """
    if (table := _TABLES.get(codec)) is None:
        table = _TABLES[codec] = _transitions(_pieces(codec))
    return table


def _pieces(codec: Decodes) -> list[str]:
    """The text that each token adds behind another one, which decides about spaces."""
    anchor = next((i for i in range(codec.vocab_size) if codec.decode(np.array([i])).strip().isalnum()), None)
    if anchor is None:
        return [codec.decode(np.array([i])) for i in range(codec.vocab_size)]
    before = codec.decode(np.array([anchor]))
    return [codec.decode(np.array([anchor, i])).removeprefix(before) for i in range(codec.vocab_size)]


def _transitions(pieces: list[str]) -> npt.NDArray[np.uint8]:
    table = np.zeros((CLOSED + 1, len(pieces)), dtype=np.uint8)
    table[CLOSED] = CLOSED
    for token, piece in enumerate(pieces):
        if "<" in piece:
            table[:CLOSED, token] = [_read(state, piece) for state in range(CLOSED)]
            continue
        # Without a "<" nothing but the tag that was begun can go on.
        for state, prefix in enumerate(_PREFIXES):
            if not piece:
                table[state, token] = state
            elif prefix and any(tag.startswith(prefix + piece[0]) for tag in CLOSING_TAGS):
                table[state, token] = _read(state, piece)
    return table


def _read(state: int, text: str) -> int:
    """The state after ``state`` and ``text``."""
    prefix = _PREFIXES[state]
    for character in text:
        prefix += character
        if prefix in CLOSING_TAGS:
            return CLOSED
        if prefix not in _STATES:
            prefix = "<" if character == "<" else ""
    return _STATES[prefix]
