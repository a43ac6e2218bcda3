"""The table of where turns end, against the text of the turn."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st

from agents.stop_tags import CLOSED, transitions
from search_gym import ByteCodec, tinywiki
from search_gym.codec import HFCodec
from search_gym.tags import closes_turn

CODECS = {
    "byte": ByteCodec(),
    "word": tinywiki.codec(),
    "hf": HFCodec(small_models.tokenizer()),
}
PIECES = ("</search>", "</answer>", "</", "<", ">", "search", "answer", "</sear", "ch>", "a", " ", "<search>", "é")


class Pieces:
    """A vocabulary whose tokens hold parts of tags, more than one tag, and what follows a tag."""

    pieces = ("", "<", "</", "</s", "earch", ">", "</search", "x</answer", ">>", "</search></answer>", "ans", "wer>\n")
    vocab_size = len(pieces)

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


def closes(table, ids):
    """After which tokens the table says that the turn has ended."""
    state, found = 0, []
    for token in ids:
        state = table[state, token]
        found.append(bool(state == CLOSED))
    return found


def check(codec, ids):
    expected = [closes_turn(codec.decode(np.array(ids[: n + 1]))) for n in range(len(ids))]
    assert closes(transitions(codec), ids) == expected


@pytest.mark.parametrize("name", CODECS)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.data())
def test_text_that_is_full_of_tags(name, text, data):
    codec = CODECS[name]
    ids = codec.encode(text).tolist()
    at = data.draw(st.integers(0, len(ids)))
    noise = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=3))
    check(codec, [*ids[:at], *noise, *ids[at:]])


@given(st.lists(st.integers(0, Pieces.vocab_size - 1), max_size=12))
def test_tokens_that_hold_parts_of_tags(ids):
    check(PARTS, ids)


PARTS = Pieces()


def test_an_ended_turn_stays_ended_and_the_table_is_made_once():
    table = transitions(PARTS)
    assert (table[CLOSED] == CLOSED).all()
    assert transitions(PARTS) is table
