"""Log-probabilities and entropies of tokens from hidden states, without ever holding the logits of all of them.

Softmax over a vocabulary makes numbers (N, V) out of states (N, W); with their gradient in float32 they are most of
what an update needs in memory. Here logits are computed for a chunk of tokens at a time, and again for the gradient, as
in Cut Cross-Entropy (Wijmans et al. 2024, arXiv 2411.09009). The slow reference is `agents.policy.evaluate_tokens` for
models whose head is not a plain product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from agents.plain_scores import differentiate, read

CHUNK_NUMBERS = {"cuda": 2**27, "cpu": 2**22}
"""Logits that are computed at a time: many keep a GPU busy, few stay in a CPU's cache."""
KEPT_NUMBERS = 2**30
"""Logits of 16 bits, 2 GiB of them, that are kept for the gradient and not computed again; of 32 bits, a chunk's."""


def token_scores(
    hidden: Float[Tensor, "N W"],
    weight: Float[Tensor, "V W"],
    token_ids: Int[Tensor, " N"],
    temperature: float,
    *,
    vocab_size: int | None = None,
    entropy_grad: bool = True,
    chunk_numbers: int | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """log softmax(hidden weight^T / temperature) at ``token_ids``, and the entropy of that distribution, in float32.

    Products are in the type of autocast where it is on, else in that of ``hidden``; all else is in float32.
    ``vocab_size`` leaves out the rows of a padded embedding. Without ``entropy_grad``, entropies have no gradient.
    """
    size = weight.shape[0] if vocab_size is None else vocab_size
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if chunk_numbers is None:
        chunk_numbers = CHUNK_NUMBERS.get(device, CHUNK_NUMBERS["cuda"])
    logprobs, entropies = _TokenScores.apply(
        hidden, weight, token_ids, 1.0 / temperature, size, dtype, max(1, chunk_numbers // max(1, size))
    )
    return logprobs, entropies if entropy_grad else entropies.detach()


class _TokenScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        token_ids: Tensor,
        scale: float,
        vocab_size: int,
        dtype: torch.dtype,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        head = weight[:vocab_size].to(dtype)
        found = torch.empty((3, len(hidden)), dtype=torch.float32, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            is_kept = len(hidden) <= rows or (len(hidden) * vocab_size <= KEPT_NUMBERS and dtype.itemsize <= 2)
            kept: list[Tensor] = []
            for part in _parts(len(hidden), rows):
                logits = hidden[part].to(dtype) @ head.T
                if is_kept and any(ctx.needs_input_grad):
                    kept.append(logits)
                found[:, part] = torch.stack(kernels(hidden).read(logits, token_ids[part], scale))
        logprobs, entropies, logsumexp = found
        ctx.kept = kept
        ctx.save_for_backward(hidden, weight, token_ids, logsumexp, entropies)
        ctx.options = scale, vocab_size, dtype, rows
        return logprobs, entropies.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        hidden, weight, token_ids, logsumexp, entropies = ctx.saved_tensors
        scale, vocab_size, dtype, rows = ctx.options
        grad_logprobs, grad_entropies = grads
        head = weight[:vocab_size].to(dtype)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _parts(len(hidden), rows):
                states = hidden[part].to(dtype)
                logits = ctx.kept.pop(0) if ctx.kept else states @ head.T
                grad = kernels(hidden).differentiate(
                    logits,
                    token_ids[part],
                    scale,
                    logsumexp[part],
                    entropies[part],
                    grad_logprobs[part],
                    grad_entropies[part],
                )
                if grad_hidden is not None:
                    grad_hidden[part] = grad @ head
                if grad_weight is not None:
                    grad_weight[:vocab_size] += grad.T @ states
        return grad_hidden, grad_weight, None, None, None, None, None


def _parts(length: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, length, rows))


class _Plain:
    """`agents.triton_scores` in plain torch."""

    read, differentiate = staticmethod(read), staticmethod(differentiate)


def kernels(x: Tensor) -> Any:
    """The module that reads logits where ``x`` is."""
    if x.device.type == "cuda":
        try:
            from agents import triton_scores
        except ImportError:
            return _Plain
        return triton_scores
    return _Plain
