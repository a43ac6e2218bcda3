"""Does a trainer keep the tokens that were sampled, and know which they are?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.errors import OptionError
from search_gym.testing._failures import InvarianceError, SubjectError
from search_gym.transcript import SpanKind, Transcript

TokenPipeline = Callable[[Transcript], tuple[Any, Any]]

_Pieces = list[tuple[SpanKind, npt.NDArray[np.int64]]]


def check_token_pipeline(
    pipeline: TokenPipeline,
    *,
    vocab_size: int = 64,
    special_ids: Sequence[int] = (0, 1, 2),
    num_transcripts: int = 12,
    max_length: int = 512,
    seed: int = 0,
) -> None:
    """A trainer's way from a `Transcript` to ``(token_ids, loss_mask)``, both (n,), touches no token.

    The ids must be the transcript's, in number and in value, the mask True exactly where the policy sampled, and the
    same transcript appended in other chunks must give the same. Ids are drawn from ``vocab_size``, and ``special_ids``
    (give those of your padding, BOS and EOS) often, in actions too: what was sampled was sampled. Transcripts have at
    most ``max_length`` tokens. The pipeline may return anything that numpy can turn into an array.

    Raises:
        InvarianceError: an id, the length or the mask changed. SubjectError: not two 1-D arrays.
    """
    if not all(0 <= i < vocab_size for i in special_ids) or max_length < 16 or num_transcripts < 1:
        raise OptionError(
            f"expected special_ids in [0, {vocab_size}), max_length >= 16 and num_transcripts >= 1, "
            f"got {list(special_ids)}, {max_length} and {num_transcripts}"
        )
    for index in range(num_transcripts):
        rng = np.random.default_rng([seed, index])
        pieces = _draw_pieces(rng, vocab_size, special_ids, max_length * (index + 1) // num_transcripts)
        transcript = _append(pieces)
        ids, mask = _run(pipeline, transcript)
        _compare(transcript, ids, mask)
        for again in _run(pipeline, _append(_cut(rng, pieces))), _run(pipeline, _append(_cut(rng, pieces))):
            if not all(np.array_equal(a, b) for a, b in zip((ids, mask), again, strict=True)):
                raise InvarianceError(
                    "expected the same token_ids and loss_mask from the same transcript appended in other chunks, got "
                    f"others for {transcript!r}; do: read token_ids and spans, not how they came about"
                )


def _draw_pieces(rng: np.random.Generator, vocab_size: int, special_ids: Sequence[int], length: int) -> _Pieces:
    """A prompt, then actions and observations in turn, ``length`` tokens or a few more than 8 if that is less."""
    pieces: _Pieces = []
    left = max(length, 8)
    most = max(left // 4, 2)
    while left > 0:
        n = min(left, int(rng.integers(1, most + 1)))
        ids = rng.integers(vocab_size, size=n)
        if len(special_ids):
            ids = np.where(rng.random(n) < 0.25, rng.choice(np.array(special_ids), size=n), ids)
        kind: SpanKind = "prompt" if not pieces else "action" if len(pieces) % 2 else "observation"
        pieces.append((kind, ids))
        left -= n
    return pieces


def _cut(rng: np.random.Generator, pieces: _Pieces) -> _Pieces:
    """The same tokens, appended in smaller pieces; the prompt is appended once."""
    chunks: _Pieces = []
    for kind, ids in pieces:
        cuts = np.flatnonzero(rng.random(len(ids) - 1) < 0.5) + 1 if kind != "prompt" else []
        chunks.extend((kind, chunk) for chunk in np.split(ids, cuts))
    return chunks


def _append(pieces: _Pieces) -> Transcript:
    transcript = Transcript()
    for kind, ids in pieces:
        transcript.append(kind, ids)
    return transcript


def _run(pipeline: TokenPipeline, transcript: Transcript) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    result = pipeline(transcript)
    if not isinstance(result, tuple) or len(result) != 2:
        raise SubjectError(f"expected (token_ids, loss_mask) from the pipeline, got {type(result).__name__}")
    ids, mask = np.asarray(result[0]), np.asarray(result[1])
    if ids.ndim != 1 or ids.shape != mask.shape:
        raise SubjectError(
            f"expected token_ids and loss_mask of one shape (n,), got {ids.shape} and {mask.shape}; "
            "do: take one row, and cut its padding off, in a lambda"
        )
    return ids, mask


def _compare(transcript: Transcript, ids: npt.NDArray[Any], mask: npt.NDArray[Any]) -> None:
    expected_ids, expected_mask = transcript.token_ids, transcript.loss_mask
    if len(ids) != len(expected_ids):
        raise InvarianceError(
            f"expected the {len(expected_ids)} tokens of {transcript!r}, got {len(ids)}; "
            "do: pass ids on as they are; do not decode and encode, strip special tokens, or truncate"
        )
    for name, expected, got, advice in (
        ("id", expected_ids, ids, "pass ids on as they are; do not decode and encode them"),
        ("loss_mask", expected_mask, mask, "take loss_mask from the transcript's spans, not from ids or from text"),
    ):
        different = np.flatnonzero(expected != got)
        if len(different):
            at = int(different[0])
            (span,) = [span for span in transcript.spans if span.start <= at < span.stop]
            raise InvarianceError(
                f"expected {name} {expected[at]} for token {at} (id {expected_ids[at]}, in {span.kind} "
                f"{span.start}:{span.stop}), got {got[at]}, and {len(different)} such differences in "
                f"{len(expected)} tokens; do: {advice}"
            )
