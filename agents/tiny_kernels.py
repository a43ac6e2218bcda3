"""The tiny model's forward pass over a cache, compiled for CPUs by numba: all of it in one call, without padding.

A batch of the tiny model's tokens is so little arithmetic that separate operations spend most of their time being
called. Arrays are C-contiguous float32 unless said otherwise; T tokens, R rows of the cache, C columns, L blocks, H
heads of D numbers, W = H D, V words. Keys are kept as (D, C), so that scores of neighbouring columns are computed
together. ``agents/tiny_decoder.py`` computes the same in torch, ``agents/tiny.py`` says what it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

TILE = 32
"""Tokens that go through all blocks together; what they need stays in a core's own memory."""
_EPS = np.float32(1e-6)


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


def jit(function: Any) -> Any:
    """``function`` as machine code, kept on disk where there is a place for it. NaN stays NaN."""
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write
        return numba.njit(**options)(function)


@jit
def _exp(x: Any) -> Any:
    """e^x for x <= 0 within 1.2e-7 of its value, in operations that a compiler can do for many x at once.

    2^k times a polynomial of the rest, with the coefficients of expf in Moshier's Cephes library.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    f = (x - k * np.float32(0.693359375)) + k * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * f + np.float32(1.3981999507e-3)
    p = p * f + np.float32(8.3334519073e-3)
    p = p * f + np.float32(4.1665795894e-2)
    p = p * f + np.float32(1.6666665459e-1)
    p = p * f + np.float32(5.0000001201e-1)
    p = p * f * f + f + np.float32(1.0)
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit
def _linear(x: Any, weight: Any, y: Any, count: Any) -> None:
    """y = x @ weight for the first ``count`` rows, four rows and four inputs at a time; inputs are a multiple of 4."""
    inputs, outputs = weight.shape
    row = 0
    while row + 4 <= count:
        y0, y1, y2, y3 = y[row], y[row + 1], y[row + 2], y[row + 3]
        for j in range(outputs):
            y0[j] = y1[j] = y2[j] = y3[j] = np.float32(0)
        for k in range(0, inputs, 4):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
            b0, b1, b2, b3 = x[row + 1, k], x[row + 1, k + 1], x[row + 1, k + 2], x[row + 1, k + 3]
            c0, c1, c2, c3 = x[row + 2, k], x[row + 2, k + 1], x[row + 2, k + 2], x[row + 2, k + 3]
            d0, d1, d2, d3 = x[row + 3, k], x[row + 3, k + 1], x[row + 3, k + 2], x[row + 3, k + 3]
            for j in range(outputs):
                v0, v1, v2, v3 = w0[j], w1[j], w2[j], w3[j]
                y0[j] += a0 * v0 + a1 * v1 + a2 * v2 + a3 * v3
                y1[j] += b0 * v0 + b1 * v1 + b2 * v2 + b3 * v3
                y2[j] += c0 * v0 + c1 * v1 + c2 * v2 + c3 * v3
                y3[j] += d0 * v0 + d1 * v1 + d2 * v2 + d3 * v3
        row += 4
    while row < count:
        y0 = y[row]
        for j in range(outputs):
            y0[j] = np.float32(0)
        for k in range(0, inputs, 4):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
            for j in range(outputs):
                y0[j] += a0 * w0[j] + a1 * w1[j] + a2 * w2[j] + a3 * w3[j]
        row += 1


@jit
def _rms_norm(x: Any, weight: Any, y: Any, count: Any) -> None:
    width = x.shape[1]
    for row in range(count):
        squares = np.float32(0)
        for j in range(width):
            squares += x[row, j] * x[row, j]
        scale = np.float32(1) / np.sqrt(squares / np.float32(width) + _EPS)
        for j in range(width):
            y[row, j] = x[row, j] * scale * weight[j]


@jit
def _rotate(x: Any, cos: Any, sin: Any) -> None:
    """Turn the pairs (0, 1), (2, 3), ... of ``x`` (D,) by the angles of a position, in place."""
    for i in range(len(cos)):
        a, b = x[2 * i], x[2 * i + 1]
        x[2 * i] = a * cos[i] - b * sin[i]
        x[2 * i + 1] = a * sin[i] + b * cos[i]


@jit
def _scores(query: Any, keys: Any, scale: Any, scores: Any, count: Any) -> Any:
    """Scaled products of ``query`` (D,) with the first ``count`` columns of ``keys`` (D, C); returns the largest."""
    for c in range(count):
        scores[c] = np.float32(0)
    for d in range(0, len(query), 4):
        q0, q1, q2, q3 = query[d] * scale, query[d + 1] * scale, query[d + 2] * scale, query[d + 3] * scale
        k0, k1, k2, k3 = keys[d], keys[d + 1], keys[d + 2], keys[d + 3]
        for c in range(count):
            scores[c] += q0 * k0[c] + q1 * k1[c] + q2 * k2[c] + q3 * k3[c]
    largest = np.float32(-np.inf)
    for c in range(count):
        largest = scores[c] if scores[c] > largest else largest
    return largest


@jit
def _exps(x: Any, largest: Any, count: Any) -> Any:
    """The first ``count`` of ``x`` become e^(x - largest), in place; returns their sum."""
    total = np.float32(0)
    for i in range(count):
        x[i] = _exp(x[i] - largest)
        total += x[i]
    return total


@jit
def _attend(query: Any, keys: Any, values: Any, scores: Any, count: Any, out: Any) -> None:
    """Attention of one query (D,) over the first ``count`` columns, into ``out`` (D,)."""
    width = len(query)
    largest = _scores(query, keys, np.float32(width) ** np.float32(-0.5), scores, count)
    scale = np.float32(1) / _exps(scores, largest, count)
    for d in range(width):
        out[d] = np.float32(0)
    whole = count - count % 4
    for c in range(0, whole, 4):
        w0, w1, w2, w3 = scores[c] * scale, scores[c + 1] * scale, scores[c + 2] * scale, scores[c + 3] * scale
        v0, v1, v2, v3 = values[c], values[c + 1], values[c + 2], values[c + 3]
        for d in range(width):
            out[d] += w0 * v0[d] + w1 * v1[d] + w2 * v2[d] + w3 * v3[d]
    for c in range(whole, count):
        weight, value = scores[c] * scale, values[c]
        for d in range(width):
            out[d] += weight * value[d]


@jit
def _point(normed: Any, query: Any, position: Any, weights: Any, cache: Any, row: Any, scores: Any, probs: Any) -> None:
    """Turn the vocabulary's logits in ``probs`` (V,) into probabilities of the token after ``position``."""
    width, words = len(normed), len(weights.embedding)
    largest = probs[0]
    for v in range(words):
        largest = probs[v] if probs[v] > largest else largest
    vocabulary = _exps(probs, largest, words)
    sentinel = weights.sentinel[width]
    for j in range(width):
        sentinel += normed[j] * weights.sentinel[j]
    scale = np.float32(width) ** np.float32(-0.5)
    largest = _scores(query, cache.pointer_keys[row], scale, scores, position)
    largest = sentinel if sentinel > largest else largest
    copies = _exps(scores, largest, position)
    own = _exp(sentinel - largest)
    scale = np.float32(1) / (own + copies)
    factor = own * scale / vocabulary
    for v in range(words):
        probs[v] *= factor
    following = cache.token_ids[row]
    for c in range(position):
        probs[following[c + 1]] += scores[c] * scale


@jit
def forward(token_ids: Any, rows: Any, positions: Any, weights: Any, cache: Any, targets: Any, probs: Any) -> None:
    """Append tokens to rows of the cache, in place, and tell what comes next.

    Token t, ``token_ids[t]``, is put at ``positions[t]`` of row ``rows[t]``, whose earlier columns are in the cache or
    come earlier among the tokens. The probabilities of the token after it are written to ``probs[targets[t]]``, unless
    that index is negative. ``token_ids``, ``rows``, ``positions``, ``targets``: (T,) int64; ``probs``: (N, V or fewer).
    """
    blocks, width = weights.attention_norm.shape
    heads, head_width = cache.keys.shape[2], cache.keys.shape[3]
    hidden = np.empty((TILE, width), dtype=np.float32)
    normed = np.empty((TILE, width), dtype=np.float32)
    change = np.empty((TILE, width), dtype=np.float32)
    attended = np.empty((TILE, width), dtype=np.float32)
    qkv = np.empty((TILE, 3 * width), dtype=np.float32)
    inner = np.empty((TILE, weights.up.shape[2]), dtype=np.float32)
    logits = np.empty((TILE, weights.head.shape[1]), dtype=np.float32)
    scores = np.empty(cache.keys.shape[4], dtype=np.float32)
    for start in range(0, len(token_ids), TILE):
        count = min(TILE, len(token_ids) - start)
        for i in range(count):
            hidden[i] = weights.embedding[token_ids[start + i]]
        for block in range(blocks):
            _rms_norm(hidden, weights.attention_norm[block], normed, count)
            _linear(normed, weights.qkv[block], qkv, count)
            for i in range(count):
                row, position = rows[start + i], positions[start + i]
                for j in range(3 * width):
                    qkv[i, j] += weights.qkv_bias[block, j]
                for head in range(2 * heads):
                    part = qkv[i, head * head_width : (head + 1) * head_width]
                    _rotate(part, cache.cos[position], cache.sin[position])
                for head in range(heads):
                    key = qkv[i, width + head * head_width : width + (head + 1) * head_width]
                    value = qkv[i, 2 * width + head * head_width : 2 * width + (head + 1) * head_width]
                    for d in range(head_width):
                        cache.keys[block, row, head, d, position] = key[d]
                        cache.values[block, row, head, position, d] = value[d]
            for i in range(count):
                row, position = rows[start + i], positions[start + i]
                for head in range(heads):
                    own = slice(head * head_width, (head + 1) * head_width)
                    keys, values = cache.keys[block, row, head], cache.values[block, row, head]
                    _attend(qkv[i, own], keys, values, scores, position + 1, attended[i, own])
            _linear(attended, weights.out[block], change, count)
            for i in range(count):
                for j in range(width):
                    hidden[i, j] += change[i, j]
            _rms_norm(hidden, weights.mlp_norm[block], normed, count)
            _linear(normed, weights.up[block], inner, count)
            for i in range(count):
                for j in range(inner.shape[1]):
                    inner[i, j] = np.float32(0) if inner[i, j] < np.float32(0) else inner[i, j]
            _linear(inner, weights.down[block], change, count)
            for i in range(count):
                for j in range(width):
                    hidden[i, j] += change[i, j]
        _rms_norm(hidden, weights.norm, normed, count)
        _linear(normed, weights.pointer_key, change, count)
        wanted = False
        for i in range(count):
            row, position = rows[start + i], positions[start + i]
            cache.token_ids[row, position] = token_ids[start + i]
            for j in range(width):
                cache.pointer_keys[row, j, position] = change[i, j]
            wanted |= targets[start + i] >= 0
        if not wanted:
            continue
        _linear(normed, weights.pointer_query, change, count)
        _linear(normed, weights.head, logits, count)
        for i in range(count):
            target = targets[start + i]
            if target >= 0:
                row, position = rows[start + i], positions[start + i]
                _point(normed[i], change[i], position, weights, cache, row, scores, logits[i])
                probs[target] = logits[i, : probs.shape[1]]
