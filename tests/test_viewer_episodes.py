"""Episodes as a page holds them: whatever a token is, none of it reaches the markup, and it comes back harmless."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search_gym.render import harmless
from search_gym.transcript import Span
from search_gym.viewer.episodes import pack, unpack
from search_gym.viewer.run_folder import Sample

HOSTILE = st.text() | st.sampled_from(["</script>", "<!--", "\0", "\u202e", "\ud800", "🙂", "שלום"])


@given(st.lists(HOSTILE, min_size=1, max_size=8), HOSTILE, st.floats(-9, 9))
def test_hostile_episodes_come_back_as_harmless_text(tokens: list[str], name: str, number: float) -> None:
    values = np.full(len(tokens), np.nan)
    values[-1] = number
    spans = (Span("prompt", 0, len(tokens) - 1), Span("action", len(tokens) - 1, len(tokens)))
    sample = Sample(name, name, (name,), name, None, 1.0, 1.0, None, spans, tuple(tokens), {"value": values})
    packed = pack([(name, [sample])])
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", packed)
    data = unpack(packed)
    episode = data["episodes"][0]
    assert [data["texts"][place] for place in episode["tokens"]] == [harmless(token) for token in tokens]
    assert data["labels"] == [harmless(name)] == [episode["question"]]
    assert episode["values"][1] == [float(f"{number:.4g}")]
    assert episode["values"][0] is None
