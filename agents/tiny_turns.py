"""Whole turns of the tiny model, sampled in one call: `agents.tiny_kernels` in a compiled loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from agents.tiny_kernels import forward, jit

ROWS = 16
"""Turns that take their steps together, the next one in place of each that has ended: few enough for its caches."""


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
) -> None:
    """`TurnRows.take_step` at temperature 1, ``steps`` times, for rows ``first`` to ``last`` (exclusive), in place.

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
            token, logprob = _choose(probs[i], -1.0 if greedy else turns.uniforms[row, place])
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
def _choose(probs: Any, uniform: Any) -> Any:
    """A word and its log-probability: the distribution function of ``probs`` (V,) inverted at ``uniform``, or the most
    probable word where that is negative. ``probs`` need not sum to 1."""
    total = 0.0
    for v in range(len(probs)):
        total += np.float64(probs[v])
    token = 0
    if uniform < 0:
        for v in range(len(probs)):
            token = v if probs[v] > probs[token] else token
    else:
        point, cumulative = uniform * total, 0.0
        while token < len(probs) - 1:
            cumulative += np.float64(probs[token])
            if cumulative > point:
                break
            token += 1
    smallest = np.finfo(np.float32).tiny
    return token, np.float32(np.log(np.float64(probs[token]) + smallest) - np.log(total))
