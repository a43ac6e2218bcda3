"""What the kernels of the tiny model read and write.

Arrays are C-contiguous float32 unless said otherwise; R rows of the cache, C columns, L blocks, H heads of D numbers,
W = H D, I numbers inside a block, V words. Keys are kept as (D, C), so that scores of neighbouring columns are computed
together.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Weights(NamedTuple):
    """Matrices are (in, out). ``embedding`` is scaled as `agents.tiny` does it, queries are not scaled."""

    embedding: Any  # (V, W)
    attention_norm: Any  # (L, W)
    qkv: Any  # (L, W, 3 W)
    qkv_bias: Any  # (L, 3 W)
    out: Any  # (L, W, W)
    mlp_norm: Any  # (L, W)
    up: Any  # (L, W, I)
    down: Any  # (L, I, W)
    norm: Any  # (W,)
    pointer_query: Any  # (W, W)
    pointer_key: Any  # (W, W)
    sentinel: Any  # (W + 1,): weight, then bias
    head: Any  # (W, V or more), with columns of zeros at the end, because whole vectors are faster


class Cache(NamedTuple):
    """What rows hold, and the rotary phases of every column."""

    keys: Any  # (L, R, H, D, C)
    values: Any  # (L, R, H, C, D)
    pointer_keys: Any  # (R, W, C)
    token_ids: Any  # (R, C + 1) int64: a column of the pointer stands for the token after it
    cos: Any  # (C, D / 2)
    sin: Any  # (C, D / 2)


class Turns(NamedTuple):
    """The open turns of R rows, as `agents.turn_rows.TurnRows` has them: int64 but for what is said there."""

    tokens: Any
    lengths: Any
    is_open: Any
    counts: Any
    limits: Any
    tags: Any
    uniforms: Any
    turn_tokens: Any
    turn_logprobs: Any
