"""Episodes as the browser on a page wants them: small, and with nothing in them that could break the page."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from search_gym.render import harmless
from search_gym.viewer.run_folder import TOKEN_VALUES, Sample

_AUTHOR = {"prompt": 0, "action": 1, "observation": 2}


def pack(runs: Sequence[tuple[str, Sequence[Sample]]], *, labels: dict[str, str] | None = None) -> str:
    """The episodes of each named run as base64 of deflated JSON: letters, digits, ``+/=``, and nothing else.

    The JSON object holds ``texts`` (every different token once), ``runs``, ``labels`` (names of checkpoints, for
    readers those of ``labels``), ``kinds``, ``values`` (names of token numbers), and ``episodes``. In an episode
    ``tokens`` are places in ``texts``, ``spans`` pairs of author (0 prompt, 1 sampled, 2 retrieved) and length, and
    ``values`` arrays over its sampled tokens, None where the number is not known.
    """
    texts, names, kinds = _Places(), _Places(), _Places()
    episodes: list[dict[str, Any]] = []
    for number, (_, samples) in enumerate(runs):
        for sample in samples:
            sampled = np.zeros(len(sample.tokens), dtype=np.bool_)
            for span in sample.spans:
                sampled[span.start : span.stop] = span.kind == "action"
            episodes.append(
                {
                    "run": number,
                    "label": names.of(harmless((labels or {}).get(sample.label, sample.label))),
                    "kind": kinds.of(harmless(sample.kind)),
                    "question": harmless(sample.question),
                    "answers": [harmless(answer) for answer in sample.answers],
                    "answer": None if sample.answer is None else harmless(str(sample.answer)),
                    "em": sample.em,
                    "reward": round(sample.reward, 4),
                    "searches": sample.searches,
                    "spans": [(_AUTHOR[span.kind], span.stop - span.start) for span in sample.spans],
                    "tokens": [texts.of(harmless(token)) for token in sample.tokens],
                    "values": [_numbers(sample, name, sampled) for name in TOKEN_VALUES.values()],
                }
            )
    data = {
        "texts": texts.found,
        "runs": [harmless(name) for name, _ in runs],
        "labels": names.found,
        "kinds": kinds.found,
        "values": list(TOKEN_VALUES.values()),
        "episodes": episodes,
    }
    written = json.dumps(data, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(zlib.compress(written, 9)).decode("ascii")


def unpack(packed: str) -> dict[str, Any]:
    """What `pack` has packed."""
    return json.loads(zlib.decompress(base64.b64decode(packed)))


class _Places(dict[str, int]):
    """Different strings, and at which place each of them stands."""

    @property
    def found(self) -> list[str]:
        return list(self)

    def of(self, text: str) -> int:
        return self.setdefault(text, len(self))


def _numbers(sample: Sample, name: str, sampled: np.ndarray) -> list[float | None] | None:
    array = sample.token_values.get(name)
    if array is None:
        return None
    return [float(f"{x:.4g}") if np.isfinite(x) else None for x in array[sampled].tolist()]
