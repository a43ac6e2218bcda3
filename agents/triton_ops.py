# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
"""`agents.ops` as fused kernels for a GPU, in Triton. Everything is computed in float32 between loads and stores.

Attention walks along the columns that a row really has (FlashAttention-2, Dao 2023, arXiv 2307.08691, and for a step
Flash-Decoding's split of long rows), and the query heads that share a key head are one tile, so nothing is repeated.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from agents.ops import EVERYTHING, Activation, Chunk, Step

_QUERIES_A_BLOCK = 64
_MIN_DOT = 16  # rows of the smallest tile that tensor cores multiply
_PROGRAMS = 512  # that keep a large GPU busy
_STEP = {"BLOCK": 64, "num_warps": 2, "num_stages": 3}
_CHUNK = {"BLOCK": 64, "num_warps": 4, "num_stages": 3}
_NOTHING = tl.constexpr(-1.0e30)


class TritonOps:
    """All of `agents.ops.Ops` on a CUDA device; see ``TorchOps`` for what each returns."""

    def add_rms_norm(
        self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        num_tokens, width = x.shape
        total = x if delta is None else torch.empty_like(x)
        normed = torch.empty_like(x, dtype=dtype)
        block = triton.next_power_of_2(width)
        _add_rms_norm[(num_tokens,)](
            x, delta, weight, total, normed, eps, width, HAS_DELTA=delta is not None, BLOCK=block, num_warps=4
        )
        return total, normed

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        num_tokens, double = gate_up.shape
        width = double // 2
        out = gate_up.new_empty((num_tokens, width))
        grid = (num_tokens, triton.cdiv(width, 1024))
        _gated[grid](gate_up, out, width, SILU=activation == "silu", BLOCK=1024, num_warps=4)
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        phases: tuple[Tensor, Tensor],
        positions: Tensor,
        rows: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        num_tokens, num_heads, head_dim = qkv.shape
        num_keys = keys.shape[1]
        num_queries = num_heads - 2 * num_keys
        query = qkv.new_empty((num_tokens, num_queries, head_dim))
        cos, sin = phases
        _rotate_and_store[(num_tokens,)](
            qkv,
            cos,
            sin,
            positions,
            rows,
            query,
            keys,
            values,
            keys.stride(0),
            keys.stride(1),
            QUERIES=num_queries,
            KEYS=num_keys,
            HEADS=triton.next_power_of_2(num_heads),
            HALF=head_dim // 2,
            num_warps=4,
        )
        return query

    def attend_step(
        self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scale: float, window: int = EVERYTHING
    ) -> Tensor:
        num_rows, num_queries, head_dim = query.shape
        num_keys = keys.shape[1]
        group = num_queries // num_keys
        splits = min(16, triton.next_power_of_2(triton.cdiv(_PROGRAMS, num_rows * num_keys)))
        out = torch.empty_like(query)
        tiles = (num_rows, num_keys, splits)
        partial = query.new_empty((*tiles, group, head_dim), dtype=torch.float32) if splits > 1 else out
        logs = query.new_empty((*tiles, group, 2), dtype=torch.float32) if splits > 1 else partial
        _attend_step[tiles](
            query,
            keys,
            values,
            step.lengths,
            partial,
            logs,
            scale,
            window,
            keys.stride(0),
            keys.stride(1),
            GROUP=group,
            TILE=max(_MIN_DOT, triton.next_power_of_2(group)),
            DIM=head_dim,
            SPLITS=splits,
            PRECISION=_precision(query),
            **_STEP,
        )
        if splits > 1:
            _join_splits[(num_rows, num_queries)](
                partial, logs, out, GROUP=group, DIM=head_dim, SPLITS=splits, num_warps=1
            )
        return out

    def attend_chunk(
        self, query: Tensor, keys: Tensor, values: Tensor, chunk: Chunk, scale: float, window: int = EVERYTHING
    ) -> Tensor:
        _, num_queries, head_dim = query.shape
        blocks = _blocks(chunk, query.device)
        out = torch.empty_like(query)
        _attend_chunk[(blocks.shape[0], num_queries)](
            query,
            keys,
            values,
            blocks,
            out,
            scale,
            window,
            keys.stride(0),
            keys.stride(1),
            QUERIES=num_queries,
            GROUP=num_queries // keys.shape[1],
            DIM=head_dim,
            ROWS=_QUERIES_A_BLOCK,
            PRECISION=_precision(query),
            **_CHUNK,
        )
        return out

    def sample(
        self, logits: Tensor, uniforms: Tensor | None, temperature: float, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        num_rows = logits.shape[0]
        ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
        logprobs = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
        _sample[(num_rows,)](
            logits,
            uniforms,
            ids,
            logprobs,
            1.0 / temperature,
            logits.stride(0),
            vocab_size,
            GREEDY=uniforms is None,
            BLOCK=min(4096, triton.next_power_of_2(vocab_size)),
            num_warps=8,
        )
        return ids, logprobs


def _precision(x: Tensor) -> str:
    """float32 is multiplied as it is; what has fewer digits has no choice."""
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _blocks(chunk: Chunk, device: torch.device) -> Tensor:
    """(B, 4) int32: the row of each block of queries, its first token in the chunk, how many there are, and the
    position of the first. Made once for all layers."""
    known = chunk.__dict__.get("_blocks")
    if known is None:
        table, first = [], 0
        for row, start, count in zip(chunk.rows, chunk.starts, chunk.counts, strict=True):
            for offset in range(0, count, _QUERIES_A_BLOCK):
                table.append((row, first + offset, min(_QUERIES_A_BLOCK, count - offset), start + offset))
            first += count
        known = chunk.__dict__["_blocks"] = torch.tensor(table, dtype=torch.int32).to(device)
    return known


@triton.jit
def _add_rms_norm(
    x_ptr, delta_ptr, weight_ptr, total_ptr, normed_ptr, eps, width, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(x_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        x += tl.load(delta_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + row * width + columns, x, mask=inside)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + row * width + columns, x * scale * weight, mask=inside)


@triton.jit
def _gated(gate_up_ptr, out_ptr, width, SILU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        active = gate * tl.sigmoid(gate)
    else:  # gelu's tanh form; tanh(z) = 2 sigmoid(2 z) - 1
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = gate * tl.sigmoid(2 * inner)
    tl.store(out_ptr + row * width + columns, active * up, mask=inside)


@triton.jit
def _rotate_and_store(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    positions_ptr,
    rows_ptr,
    query_ptr,
    keys_ptr,
    values_ptr,
    row_stride,
    head_stride,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + token).to(tl.int64)
    row = tl.load(rows_ptr + token).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    pairs = tl.arange(0, HALF)[None, :]
    inside = heads < QUERIES + 2 * KEYS
    source = qkv_ptr + (token * (QUERIES + 2 * KEYS) + heads) * 2 * HALF + pairs
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    turns = heads < QUERIES + KEYS
    cos = tl.load(cos_ptr + position * HALF + pairs)
    sin = tl.load(sin_ptr + position * HALF + pairs)
    turned = tl.where(turns, first * cos - second * sin, first)
    turned_second = tl.where(turns, second * cos + first * sin, second)

    place = query_ptr + (token * QUERIES + heads) * 2 * HALF + pairs
    is_query = heads < QUERIES
    tl.store(place, turned, mask=is_query)
    tl.store(place + HALF, turned_second, mask=is_query)

    column = row * row_stride + position * 2 * HALF + pairs
    is_key = (heads >= QUERIES) & turns
    place = keys_ptr + column + (heads - QUERIES) * head_stride
    tl.store(place, turned, mask=is_key)
    tl.store(place + HALF, turned_second, mask=is_key)
    is_value = (heads >= QUERIES + KEYS) & inside
    place = values_ptr + column + (heads - QUERIES - KEYS) * head_stride
    tl.store(place, turned, mask=is_value)
    tl.store(place + HALF, turned_second, mask=is_value)


@triton.jit
def _attend_step(
    query_ptr,
    keys_ptr,
    values_ptr,
    lengths_ptr,
    out_ptr,
    logs_ptr,
    scale,
    window,
    row_stride,
    head_stride,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_keys = tl.num_programs(1)
    stop = tl.load(lengths_ptr + row)
    start = tl.maximum(0, stop - window)
    share = tl.cdiv(tl.cdiv(stop - start, SPLITS), BLOCK) * BLOCK
    start += split * share
    stop = tl.minimum(stop, start + share)

    members = tl.arange(0, TILE)
    dims = tl.arange(0, DIM)
    is_member = members[:, None] < GROUP
    queries = (row.to(tl.int64) * num_keys + head) * GROUP + members[:, None]
    query = tl.load(query_ptr + queries * DIM + dims[None, :], mask=is_member, other=0.0)
    base = row.to(tl.int64) * row_stride + head * head_stride

    largest = tl.full((TILE,), _NOTHING, tl.float32)
    weight = tl.zeros((TILE,), tl.float32)
    total = tl.zeros((TILE, DIM), tl.float32)
    for begin in range(start, stop, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < stop
        place = base + columns[:, None] * DIM + dims[None, :]
        keys = tl.load(keys_ptr + place, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(inside[None, :], scores, _NOTHING)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        parts = tl.exp(scores - new_largest[:, None])
        shrink = tl.exp(largest - new_largest)
        values = tl.load(values_ptr + place, mask=inside[:, None], other=0.0)
        weight = weight * shrink + tl.sum(parts, axis=1)
        total = total * shrink[:, None] + tl.dot(parts.to(values.dtype), values, input_precision=PRECISION)
        largest = new_largest

    if SPLITS == 1:
        total = total / tl.maximum(weight, 1.0e-30)[:, None]
        tl.store(out_ptr + queries * DIM + dims[None, :], total, mask=is_member)
    else:
        tile = ((row.to(tl.int64) * num_keys + head) * SPLITS + split) * GROUP + members
        tl.store(out_ptr + tile[:, None] * DIM + dims[None, :], total, mask=is_member)
        tl.store(logs_ptr + tile * 2, largest, mask=members < GROUP)
        tl.store(logs_ptr + tile * 2 + 1, weight, mask=members < GROUP)


@triton.jit
def _join_splits(partial_ptr, logs_ptr, out_ptr, GROUP: tl.constexpr, DIM: tl.constexpr, SPLITS: tl.constexpr):
    row, query = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_keys = tl.num_programs(1) // GROUP
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, DIM)
    tiles = ((row * num_keys + query // GROUP) * SPLITS + splits) * GROUP + query % GROUP
    largest = tl.load(logs_ptr + tiles * 2)
    shrink = tl.exp(largest - tl.max(largest, axis=0))
    weight = tl.sum(tl.load(logs_ptr + tiles * 2 + 1) * shrink, axis=0)
    partial = tl.load(partial_ptr + tiles[:, None] * DIM + dims[None, :])
    total = tl.sum(partial * shrink[:, None], axis=0) / tl.maximum(weight, 1.0e-30)
    tl.store(out_ptr + (row * num_keys * GROUP + query) * DIM + dims, total)


@triton.jit
def _attend_chunk(
    query_ptr,
    keys_ptr,
    values_ptr,
    blocks_ptr,
    out_ptr,
    scale,
    window,
    row_stride,
    head_stride,
    QUERIES: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    block, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(blocks_ptr + block * 4).to(tl.int64)
    first = tl.load(blocks_ptr + block * 4 + 1).to(tl.int64)
    count = tl.load(blocks_ptr + block * 4 + 2)
    position = tl.load(blocks_ptr + block * 4 + 3)

    offsets = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    is_token = offsets[:, None] < count
    place = ((first + offsets[:, None]) * QUERIES + head) * DIM + dims[None, :]
    query = tl.load(query_ptr + place, mask=is_token, other=0.0)
    positions = position + offsets
    base = row * row_stride + (head // GROUP) * head_stride

    largest = tl.full((ROWS,), _NOTHING, tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, DIM), tl.float32)
    stop = position + count
    start = tl.maximum(0, position - window + 1) // BLOCK * BLOCK
    for begin in range(start, stop, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < stop
        cell = base + columns[:, None] * DIM + dims[None, :]
        keys = tl.load(keys_ptr + cell, mask=inside[:, None], other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        visible = (columns[None, :] <= positions[:, None]) & (columns[None, :] > positions[:, None] - window)
        scores = tl.where(visible, scores, _NOTHING)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # Where all that came before was hidden, its weight of 1 a column is wiped out by the first column that shows.
        parts = tl.exp(scores - new_largest[:, None])
        shrink = tl.exp(largest - new_largest)
        values = tl.load(values_ptr + cell, mask=inside[:, None], other=0.0)
        weight = weight * shrink + tl.sum(parts, axis=1)
        total = total * shrink[:, None] + tl.dot(parts.to(values.dtype), values, input_precision=PRECISION)
        largest = new_largest
    tl.store(out_ptr + place, total / weight[:, None], mask=is_token)


@triton.jit
def _sample(
    logits_ptr,
    uniforms_ptr,
    ids_ptr,
    logprobs_ptr,
    inverse_temperature,
    row_stride,
    vocab_size,
    GREEDY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    base = logits_ptr + row.to(tl.int64) * row_stride
    largest = -float("inf")
    weight = 0.0
    best = 0
    for begin in range(0, vocab_size, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        scores = tl.load(base + columns, mask=columns < vocab_size, other=-float("inf")).to(tl.float32)
        scores *= inverse_temperature
        top = tl.max(scores, axis=0)
        if GREEDY:
            best = tl.where(top > largest, begin + tl.argmax(scores, axis=0), best)
        new_largest = tl.maximum(largest, top)
        weight = weight * tl.exp(largest - new_largest) + tl.sum(tl.exp(scores - new_largest), axis=0)
        largest = new_largest
    if not GREEDY:
        point = tl.load(uniforms_ptr + row).to(tl.float32) * weight
        below = 0.0
        for begin in range(0, vocab_size, BLOCK):
            columns = begin + tl.arange(0, BLOCK)
            inside = columns < vocab_size
            scores = tl.load(base + columns, mask=inside, other=-float("inf")).to(tl.float32) * inverse_temperature
            parts = tl.exp(scores - largest)
            reached = below + tl.cumsum(parts, axis=0)
            best += tl.sum(((reached <= point) & inside).to(tl.int32), axis=0)
            below += tl.sum(parts, axis=0)
        best = tl.minimum(best, vocab_size - 1)
    chosen = tl.load(base + best).to(tl.float32) * inverse_temperature
    tl.store(ids_ptr + row, best.to(tl.int64))
    tl.store(logprobs_ptr + row, chosen - largest - tl.log(weight))
