"""What `agents.fused_scores` does with the logits of a chunk, in plain torch; `agents.triton_scores` has kernels."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def read(
    logits: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], scale: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probabilities of ``token_ids`` under softmax(scale logits), entropies, and log sum exp, in float32."""
    scores = logits.float() * scale
    logsumexp = scores.logsumexp(dim=-1)
    log_probs = scores - logsumexp[:, None]  # small where probable, so that products lose little to rounding
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(-1, token_ids[:, None]).squeeze(-1), entropies, logsumexp


def differentiate(
    logits: Float[Tensor, "N V"],
    token_ids: Int[Tensor, " N"],
    scale: float,
    logsumexp: Float[Tensor, " N"],
    entropies: Float[Tensor, " N"],
    grad_logprobs: Float[Tensor, " N"],
    grad_entropies: Float[Tensor, " N"],
) -> Float[Tensor, "N V"]:
    """The gradient with respect to ``logits``, in their type.

    With p = softmax(scale logits) and H its entropy: scale (g (onehot - p) - e p (log p + H)), where g and e are the
    gradients of log-probabilities and entropies.
    """
    log_probs = logits.float() * scale - logsumexp[:, None]
    weights = grad_logprobs[:, None] + grad_entropies[:, None] * (log_probs + entropies[:, None])
    grad = -log_probs.exp() * weights
    grad.scatter_add_(1, token_ids[:, None], grad_logprobs[:, None])
    return (grad * scale).to(logits.dtype)
