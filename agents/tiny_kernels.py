"""The tiny model over a cache, and whole turns of it, compiled for CPUs by numba: one call, without padding.

A batch of the tiny model's tokens is so little arithmetic that separate operations spend most of their time being
called. `agents.tiny_arrays` says what the arrays are; T is a number of tokens. ``agents/tiny_decoder.py`` computes the
same in torch, ``agents/tiny.py`` says what it is. All of it is in one file, because numba notices only that a kept
function's own file has changed, not that of another function that it holds.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import intrinsic

from agents.tiny_arrays import Turns

TILE = 32
"""Tokens that go through all blocks together; what they need stays in a core's own memory."""
ROWS = 16
"""Turns that take their steps together, the next one in place of each that has ended: few enough for its caches."""
MULTIPLICATIONS = 2**18
"""OpenBLAS, which scipy brings, multiplies matrices in one thread up to so many multiplications of numbers."""
_EPS = np.float32(1e-6)


def jit(function: Any) -> Any:
    """``function`` as machine code, kept on disk where there is a place for it.

    Operations are rounded one by one as they are written. A compiler that may join or reorder them decides anew where a
    function is inlined, and code that was kept would round differently from code that has just been compiled.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write
        return numba.njit(**options)(function)


def _generate_fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Code for a * b + c of float32, rounded once."""
    f32 = numba.types.float32

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return f32(f32, f32, f32), generate


_fma: Any = intrinsic(_generate_fma)


@jit
def _exp(x: Any) -> Any:
    """e^x for x <= 0 within 1.2e-7 of its value, in operations that a compiler can do for many x at once.

    2^k times a polynomial of the rest, with the coefficients of expf in Moshier's Cephes library.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    k = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    f = (x - k * np.float32(0.693359375)) + k * np.float32(2.12194440e-4)
    p = _fma(np.float32(1.9875691500e-4), f, np.float32(1.3981999507e-3))
    p = _fma(p, f, np.float32(8.3334519073e-3))
    p = _fma(p, f, np.float32(4.1665795894e-2))
    p = _fma(p, f, np.float32(1.6666665459e-1))
    p = _fma(p, f, np.float32(5.0000001201e-1))
    p = _fma(p * f, f, f) + np.float32(1.0)
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit
def _linear(x: Any, weight: Any, y: Any, count: Any) -> None:
    """y = x @ weight for the first ``count`` rows; there is a multiple of 4 inputs.

    BLAS computes them, so few at a time that it begins no threads of its own. OpenBLAS adds up a row by itself in
    another order than several; that is done here, so that a result does not depend on how many are computed together.
    """
    inputs, outputs = weight.shape
    most = max(2, MULTIPLICATIONS // weight.size)
    row = 0
    while row + 1 < count:
        stop = min(row + most, count)
        np.dot(x[row:stop], weight, y[row:stop])
        row = stop
    if row < count:
        y0 = y[row]
        for j in range(outputs):
            y0[j] = np.float32(0)
        for k in range(0, inputs, 4):
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            a0, a1, a2, a3 = x[row, k], x[row, k + 1], x[row, k + 2], x[row, k + 3]
            for j in range(outputs):
                y0[j] = _fma(a3, w3[j], _fma(a2, w2[j], _fma(a1, w1[j], _fma(a0, w0[j], y0[j]))))


@jit
def _dot(a: Any, b: Any, count: Any) -> Any:
    """The product of two vectors' first ``count`` numbers, in eight sums that a core can work on together."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    whole = count - count % 8
    for i in range(0, whole, 8):
        s0, s1 = _fma(a[i], b[i], s0), _fma(a[i + 1], b[i + 1], s1)
        s2, s3 = _fma(a[i + 2], b[i + 2], s2), _fma(a[i + 3], b[i + 3], s3)
        s4, s5 = _fma(a[i + 4], b[i + 4], s4), _fma(a[i + 5], b[i + 5], s5)
        s6, s7 = _fma(a[i + 6], b[i + 6], s6), _fma(a[i + 7], b[i + 7], s7)
    total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
    for i in range(whole, count):
        total = _fma(a[i], b[i], total)
    return total


@jit
def _sum_of(x: Any, count: Any) -> Any:
    """The sum of the first ``count`` numbers, in eight sums that a core can work on together."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    whole = count - count % 8
    for i in range(0, whole, 8):
        s0, s1, s2, s3 = s0 + x[i], s1 + x[i + 1], s2 + x[i + 2], s3 + x[i + 3]
        s4, s5, s6, s7 = s4 + x[i + 4], s5 + x[i + 5], s6 + x[i + 6], s7 + x[i + 7]
    total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
    for i in range(whole, count):
        total += x[i]
    return total


@jit
def _max_of(x: Any, count: Any) -> Any:
    """The largest of the first ``count`` numbers."""
    m0 = m1 = m2 = m3 = m4 = m5 = m6 = m7 = np.float32(-np.inf)
    whole = count - count % 8
    for i in range(0, whole, 8):
        m0, m1 = x[i] if x[i] > m0 else m0, x[i + 1] if x[i + 1] > m1 else m1
        m2, m3 = x[i + 2] if x[i + 2] > m2 else m2, x[i + 3] if x[i + 3] > m3 else m3
        m4, m5 = x[i + 4] if x[i + 4] > m4 else m4, x[i + 5] if x[i + 5] > m5 else m5
        m6, m7 = x[i + 6] if x[i + 6] > m6 else m6, x[i + 7] if x[i + 7] > m7 else m7
    m0, m1, m2, m3 = m4 if m4 > m0 else m0, m5 if m5 > m1 else m1, m6 if m6 > m2 else m2, m7 if m7 > m3 else m3
    m0, m1 = m2 if m2 > m0 else m0, m3 if m3 > m1 else m1
    largest = m1 if m1 > m0 else m0
    for i in range(whole, count):
        largest = x[i] if x[i] > largest else largest
    return largest


@jit
def _rms_norm(x: Any, weight: Any, y: Any, count: Any) -> None:
    width = x.shape[1]
    for row in range(count):
        scale = np.float32(1) / np.sqrt(_dot(x[row], x[row], width) / np.float32(width) + _EPS)
        for j in range(width):
            y[row, j] = x[row, j] * scale * weight[j]


@jit
def _exps(x: Any, largest: Any, count: Any) -> Any:
    """The first ``count`` of ``x`` become e^(x - largest), in place; returns their sum."""
    for i in range(count):
        x[i] = _exp(x[i] - largest)
    return _sum_of(x, count)


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
            scores[c] = _fma(q3, k3[c], _fma(q2, k2[c], _fma(q1, k1[c], _fma(q0, k0[c], scores[c]))))
    return _max_of(scores, count)


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
            out[d] = _fma(w3, v3[d], _fma(w2, v2[d], _fma(w1, v1[d], _fma(w0, v0[d], out[d]))))
    for c in range(whole, count):
        weight, value = scores[c] * scale, values[c]
        for d in range(width):
            out[d] += weight * value[d]


@jit
def _point(normed: Any, query: Any, position: Any, weights: Any, cache: Any, row: Any, scores: Any, probs: Any) -> None:
    """Turn the vocabulary's logits in ``probs`` (V,) into probabilities of the token after ``position``."""
    width, words = len(normed), len(weights.embedding)
    vocabulary = _exps(probs, _max_of(probs, words), words)
    sentinel = weights.sentinel[width] + _dot(normed, weights.sentinel, width)
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


@jit
def take_steps(
    first: Any,
    last: Any,
    steps: Any,
    turns: Turns,
    weights: Any,
    cache: Any,
    tag_table: Any,
    closed: Any,
    vocab_size: Any,
    eos_id: Any,
    greedy: Any,
    temperature: Any,
    top_p: Any,
) -> None:
    """`TurnRows.take_step`, ``steps`` times, for rows ``first`` to ``last`` (exclusive), in place.

    Words from ``vocab_size`` on are not sampled.
    """
    active = np.empty(ROWS, dtype=np.int64)
    left = np.empty(ROWS, dtype=np.int64)
    token_ids = np.empty(ROWS, dtype=np.int64)
    positions = np.empty(ROWS, dtype=np.int64)
    targets = np.arange(ROWS)
    probs = np.empty((ROWS, vocab_size), dtype=np.float32)
    count, following = 0, first
    while True:
        while count < ROWS and following < last:
            if turns.is_open[following]:
                active[count], left[count] = following, steps
                count += 1
            following += 1
        if count == 0:
            return
        for i in range(count):
            token_ids[i], positions[i] = turns.tokens[active[i]], turns.lengths[active[i]]
        forward(token_ids[:count], active[:count], positions[:count], weights, cache, targets, probs)
        kept = 0
        for i in range(count):
            row = active[i]
            place = turns.counts[row]
            uniform = -1.0 if greedy else turns.uniforms[row, place]
            token, logprob = _choose(probs[i], uniform, temperature, top_p)
            turns.turn_tokens[row, place], turns.turn_logprobs[row, place] = token, logprob
            turns.counts[row] += 1
            turns.lengths[row] += 1
            turns.tags[row] = tag_table[turns.tags[row], token]
            turns.tokens[row] = token
            is_last = turns.counts[row] >= turns.limits[row]
            turns.is_open[row] = not (turns.tags[row] == closed or token == eos_id or is_last)
            if turns.is_open[row] and left[i] > 1:
                active[kept], left[kept] = row, left[i] - 1
                kept += 1
        count = kept


@jit
def _choose(probs: Any, uniform: Any, temperature: Any, top_p: Any) -> Any:
    """A word and its log-probability: the distribution function of ``probs`` (V,) inverted at ``uniform``, or the most
    probable word where that is negative. ``probs`` need not sum to 1, and is scratch afterwards.

    As in `agents.sampling.choose`, words outside ``top_p`` are not sampled and count in log-probabilities.
    """
    if temperature != 1:
        _temper(probs, temperature)
    total = _total(probs)
    token = 0
    if uniform < 0:
        for v in range(len(probs)):
            token = v if probs[v] > probs[token] else token
    else:
        point, cumulative = uniform * (_keep_nucleus(probs, total, top_p) if top_p < 1 else total), 0.0
        while token < len(probs) - 1:
            cumulative += np.float64(probs[token])
            if cumulative > point:
                break
            token += 1
    smallest = np.finfo(np.float32).tiny
    return token, np.float32(np.log(np.float64(probs[token]) + smallest) - np.log(total))


@jit
def _total(x: Any) -> Any:
    total = 0.0
    for i in range(len(x)):
        total += np.float64(x[i])
    return total


@jit
def _temper(probs: Any, temperature: Any) -> None:
    """Each of ``probs`` (V,) to the power of 1 / ``temperature``, in place, as a share of the largest."""
    smallest = np.float64(np.finfo(np.float32).tiny)
    largest = np.log(np.float64(_max_of(probs, len(probs))) + smallest)
    for v in range(len(probs)):
        probs[v] = np.exp((np.log(np.float64(probs[v]) + smallest) - largest) / temperature)


@jit
def _keep_nucleus(probs: Any, total: Any, top_p: Any) -> Any:
    """Set to 0 all but the fewest, most probable words (of equals, the first) that hold ``top_p`` of ``total``; returns
    the sum of what is left."""
    # All words that are below this hold no more than 1 - top_p together, so they need not be sorted.
    improbable = (1.0 - top_p) * total / len(probs)
    words = np.flatnonzero(probs > improbable)
    order = np.argsort(-probs[words], kind="mergesort")
    count, held = 0, 0.0
    while count < len(order) and held < top_p * total:
        held += np.float64(probs[words[order[count]]])
        count += 1
    if count == 0:  # not numbers
        return total
    last = words[order[count - 1]]
    least = probs[last]
    for v in range(len(probs)):
        if probs[v] < least or (probs[v] == least and v > last):
            probs[v] = np.float32(0)
    return _total(probs)
