# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
"""`agents.plain_scores` as kernels that look at each logit once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def read(logits: Tensor, token_ids: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `agents.plain_scores.read`."""
    num_rows, vocab_size = logits.shape
    found = torch.empty((3, num_rows), dtype=torch.float32, device=logits.device)
    _read[(num_rows,)](
        logits,
        token_ids,
        found,
        num_rows,
        scale,
        logits.stride(0),
        vocab_size,
        BLOCK=_block(vocab_size),
        num_warps=8,
    )
    logprobs, entropies, logsumexp = found
    return logprobs, entropies, logsumexp


def differentiate(
    logits: Tensor,
    token_ids: Tensor,
    scale: float,
    logsumexp: Tensor,
    entropies: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: Tensor,
) -> Tensor:
    """See `agents.plain_scores.differentiate`; takes the place of ``logits``."""
    num_rows, vocab_size = logits.shape
    block = _block(vocab_size)
    _differentiate[(num_rows, triton.cdiv(vocab_size, block))](
        logits,
        token_ids,
        logsumexp,
        entropies,
        grad_logprobs.contiguous(),
        grad_entropies.contiguous(),
        scale,
        logits.stride(0),
        vocab_size,
        BLOCK=block,
        num_warps=8,
    )
    return logits


def _block(vocab_size: int) -> int:
    return min(4096, triton.next_power_of_2(vocab_size))


@triton.jit
def _read(logits_ptr, ids_ptr, found_ptr, num_rows, scale, row_stride, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * row_stride
    largest = -float("inf")
    weight = 0.0
    moment = 0.0  # of scores less the largest, weighted: what is large is not subtracted from what is large
    for begin in range(0, vocab_size, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < vocab_size
        scores = tl.load(base + columns, mask=inside, other=-1.0e30).to(tl.float32) * scale
        new_largest = tl.maximum(largest, tl.max(scores, axis=0))
        shrink = tl.exp(largest - new_largest)
        parts = tl.where(inside, tl.exp(scores - new_largest), 0.0)
        below = tl.where(weight > 0, (largest - new_largest) * weight, 0.0)
        moment = (moment + below) * shrink + tl.sum(parts * tl.where(inside, scores - new_largest, 0.0), axis=0)
        weight = weight * shrink + tl.sum(parts, axis=0)
        largest = new_largest
    logsumexp = largest + tl.log(weight)
    chosen = tl.load(base + tl.load(ids_ptr + row)).to(tl.float32) * scale
    tl.store(found_ptr + row, chosen - logsumexp)
    tl.store(found_ptr + num_rows + row, tl.log(weight) - moment / weight)
    tl.store(found_ptr + 2 * num_rows + row, logsumexp)


@triton.jit
def _differentiate(
    logits_ptr,
    ids_ptr,
    logsumexp_ptr,
    entropies_ptr,
    grad_logprobs_ptr,
    grad_entropies_ptr,
    scale,
    row_stride,
    vocab_size,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocab_size
    place = logits_ptr + row * row_stride + columns
    log_probs = tl.load(place, mask=inside, other=0.0).to(tl.float32) * scale - tl.load(logsumexp_ptr + row)
    grad_logprob = tl.load(grad_logprobs_ptr + row)
    pull = grad_logprob + tl.load(grad_entropies_ptr + row) * (log_probs + tl.load(entropies_ptr + row))
    grad = tl.where(columns == tl.load(ids_ptr + row), grad_logprob, 0.0) - tl.exp(log_probs) * pull
    tl.store(place, grad * scale, mask=inside)
