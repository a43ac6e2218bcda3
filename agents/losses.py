"""The mathematics of policy-gradient learning on token sequences, as pure functions of tensors.

Every (B, T) tensor is indexed by the token it talks about: ``logprobs[b, t]`` is the log-probability of token t,
``values[b, t]`` the value of the state in which token t was chosen. ``loss_mask`` is True where the policy sampled the
token. What lies outside a mask never matters, neither in a result nor in a gradient, even when it is NaN or infinite.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from search_gym.errors import OptionError

KLKind = Literal["k1", "k2", "k3"]
Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum"]


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean of ``x`` where ``mask`` is True; 0 when it is True nowhere."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp_min(1)


def token_weights(
    loss_mask: Bool[Tensor, "B T"], aggregation: Aggregation = "token-mean", *, max_tokens: int = 1
) -> Float[Tensor, "B T"]:
    """What each sampled token counts for in a loss that is the weighted sum of its tokens' terms; 0 outside the mask.

    With n_b sampled tokens in row b:

    * ``"token-mean"``: 1 / sum of all n_b. Every token counts the same (DAPO, arXiv 2503.14476, equation 8; PPO).
    * ``"sequence-mean"``: 1 / (B n_b). Every rollout counts the same, whatever its length (GRPO, arXiv 2402.03300,
      equation 3; GSPO).
    * ``"sequence-sum"``: 1 / (B ``max_tokens``), a constant (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Weights are made once for a whole mini-batch. A part of it, in one micro-batch or one process, takes its own rows of
    them, so the parts' losses add up to the whole loss exactly.

    Raises:
        OptionError: ``aggregation`` is not one of the three, or ``max_tokens`` is below 1.
    """
    rows = max(1, loss_mask.shape[0])
    if aggregation == "token-mean":
        weights = loss_mask / loss_mask.sum().clamp_min(1)
    elif aggregation == "sequence-mean":
        weights = loss_mask / loss_mask.sum(dim=1, keepdim=True).clamp_min(1) / rows
    elif aggregation == "sequence-sum" and max_tokens >= 1:
        weights = loss_mask / float(rows * max_tokens)
    else:
        raise OptionError(
            "expected an aggregation among 'token-mean', 'sequence-mean', 'sequence-sum' and max_tokens >= 1, got "
            f"{aggregation!r} and {max_tokens}; do: pick one of them"
        )
    return weights.float()


def weighted_sum(
    x: Float[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"], weights: Float[Tensor, "B T"] | None = None
) -> Float[Tensor, ""]:
    """The sum of ``weights * x`` over ``loss_mask``; without ``weights``, the mean over it."""
    if weights is None:
        return masked_mean(x, loss_mask)
    return (torch.where(loss_mask, x, 0.0) * weights).sum()


def masked_whiten(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """``x`` shifted and scaled to mean 0 and unbiased variance 1 (divisor n - 1) where ``mask`` is True, 0 elsewhere.

    Numbers that do not vary, a single one included, become 0: 1e-8 is added to the variance.
    """
    centred = torch.where(mask, x - masked_mean(x, mask), 0.0)
    variance = centred.square().sum() / (mask.sum() - 1).clamp_min(1)
    return centred * torch.rsqrt(variance + 1e-8)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, equation 16) over sampled tokens only.

    With the sampled tokens of a row numbered k = 0 .. n - 1, and V_n = 0 because the episode has ended:

        delta_k = r_k + gamma V_{k+1} - V_k
        A_k     = delta_k + gamma lam A_{k+1}

    Tokens written by the environment take no time: they are neither discounted nor bootstrapped from, and their
    rewards and values are not read.

    Returns:
        Advantages, and returns A_k + V_k (the targets of the value head); both 0 where ``loss_mask`` is False.

    Differs from the reference: Search-R1 runs the recursion over information tokens too. The two agree when
    gamma = lam = 1; a mask of all response tokens reproduces it.
    """
    order = torch.argsort(~loss_mask, dim=1, stable=True)  # each row's sampled tokens, moved to the left
    r = torch.where(loss_mask, rewards, 0.0).gather(1, order)
    v = torch.where(loss_mask, values, 0.0).gather(1, order)
    scan = r + gamma * _ahead(v, 1) - v
    # After the step with stride s, scan[k] holds the first 2s terms of sum_j (gamma lam)^j delta_{k+j}.
    stride = 1
    while stride < scan.shape[1]:
        scan = scan + (gamma * lam) ** stride * _ahead(scan, stride)
        stride *= 2
    advantages = torch.zeros_like(scan).scatter(1, order, scan)
    advantages = torch.where(loss_mask, advantages, 0.0)
    return advantages, torch.where(loss_mask, advantages + values, 0.0)


def _ahead(x: Float[Tensor, "B T"], distance: int) -> Float[Tensor, "B T"]:
    """``x`` at k + ``distance``, zero past the end."""
    return torch.nn.functional.pad(x.narrow(1, distance, x.shape[1] - distance), (0, distance))


def turn_gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """`gae` with one decision per turn: a turn is one action, and its tokens share one advantage.

    A turn is a run of sampled tokens without one of the environment's in between. Its value is that of its first token
    and its reward the sum of its tokens', so ``gamma`` discounts turns, however many tokens they have.

    Returns:
        Advantages, the same on all tokens of a turn; returns, on the first token of each turn; and a mask that is True
        there, over which the value head is trained.
    """
    starts = turn_starts(loss_mask)
    turn = starts.cumsum(dim=1) - 1  # the number of the turn that a column is in, or that ended before it
    turn_rewards = torch.zeros_like(rewards).scatter_add(1, turn.clamp_min(0), torch.where(loss_mask, rewards, 0.0))
    order = turn.clamp_min(0)
    advantages, returns = gae(torch.where(starts, turn_rewards.gather(1, order), 0.0), values, starts, gamma, lam)
    per_turn = torch.zeros_like(advantages).scatter_add(1, order, advantages)
    return torch.where(loss_mask, per_turn.gather(1, order), 0.0), returns, starts


def turn_starts(loss_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True on the first token of every run of sampled tokens."""
    before = torch.nn.functional.pad(loss_mask, (1, 0))[:, : loss_mask.shape[1]]
    return loss_mask & ~before


def group_advantages(
    rewards: Float[Tensor, " B"],
    group_ids: Int[Tensor, " B"],
    *,
    normalize_std: bool = True,
    leave_one_out: bool = False,
) -> Float[Tensor, " B"]:
    """How much better each rollout did than the other answers to the same question.

    GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1.2): (r - mean) / (std + 1e-6), std unbiased.
    ``normalize_std=False`` leaves out the division (Liu et al. 2025, arXiv 2503.20783).
    ``leave_one_out=True`` takes the mean of the others in the group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).
    A group of one keeps its r. Equal float32 rewards give exactly 0, because the mean is taken in float64.
    """
    r = rewards.double()
    _, group, size = torch.unique(group_ids, return_inverse=True, return_counts=True)

    def group_sum(x: Tensor) -> Tensor:
        return torch.zeros(size.shape, dtype=x.dtype, device=x.device).index_add(0, group, x)[group]

    n = size[group]
    others = (n - 1).clamp_min(1)
    centred = r - group_sum(r) / n
    advantages = centred * n / others if leave_one_out else centred
    if normalize_std:
        advantages = advantages / ((group_sum(centred.square()) / others).sqrt() + 1e-6)
    return torch.where(n == 1, r, advantages).to(rewards.dtype)


def spread(per_row: Float[Tensor, " B"], loss_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """One number for each row, on all of its sampled tokens; 0 elsewhere."""
    return per_row[:, None] * loss_mask


def ppo_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7) of sampled tokens.

    The ratio pi / pi_old of each token is clipped to [1 - ``clip_low``, 1 + ``clip_high``]; a ``clip_high`` above
    ``clip_low`` is DAPO's clip-higher (arXiv 2503.14476, equation 10). Without ``weights``, the mean over tokens.

    Returns:
        The loss to minimise, and detached statistics, summed with the same weights: ``clip_fraction`` (tokens whose
        gradient the clip cuts), ``approx_kl`` (the k3 estimate of KL(pi_old || pi)) and ``ratio_mean``; and
        ``ratio_max``.
    """
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, 0.0)
    return _clipped_surrogate(log_ratio, advantages, loss_mask, clip_low, clip_high, weights)


def gspo_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The clipped surrogate with one ratio for each rollout (GSPO, Zheng et al. 2025, arXiv 2507.18071, equation 5).

    The ratio is the geometric mean of the token ratios of a row, s = exp(mean of log pi - log pi_old) (equation 7), so
    rows must be whole rollouts. With the weights "sequence-mean" the loss is the paper's mean over rollouts. Returns
    what `ppo_policy_loss` does.
    """
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, loss_mask)[:, None].expand_as(logprobs)
    return _clipped_surrogate(log_ratio, advantages, loss_mask, clip_low, clip_high, weights)


def sequence_log_ratio(
    logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """The mean of log pi - log pi_old over each row's sampled tokens; 0 for a row without any."""
    log_ratio = torch.where(loss_mask, logprobs - old_logprobs, 0.0)
    return log_ratio.sum(dim=1) / loss_mask.sum(dim=1).clamp_min(1)


def _clipped_surrogate(
    log_ratio: Tensor, advantages: Tensor, loss_mask: Tensor, clip_low: float, clip_high: float, weights: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """``log_ratio`` (B, T) may hold anything finite outside ``loss_mask``."""
    advantages = torch.where(loss_mask, advantages, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = weighted_sum(torch.maximum(unclipped, clipped), loss_mask, weights)
    with torch.no_grad():
        stats = {
            "clip_fraction": weighted_sum((clipped > unclipped).to(loss.dtype), loss_mask, weights),
            "approx_kl": weighted_sum(ratio - 1.0 - log_ratio, loss_mask, weights),
            "ratio_mean": weighted_sum(ratio, loss_mask, weights),
            "ratio_max": torch.where(loss_mask, ratio, 0.0).max(),
        }
    return loss, stats


def reinforce_loss(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """-A log pi (Williams 1992, REINFORCE) of sampled tokens, whose gradient is the policy gradient at pi = pi_old."""
    return weighted_sum(-torch.where(loss_mask, advantages, 0.0) * logprobs, loss_mask, weights)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    clip: float | None,
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Half the squared error of ``values`` against ``returns`` at sampled tokens; without ``weights``, their mean.

    With ``clip``, the larger of that and the error of the value held within ``clip`` of ``old_values``, as in the PPO
    of OpenAI Baselines. ``clip=None`` leaves it out.

    Returns:
        The loss, and the detached statistic ``value_clip_fraction``, summed with the same weights.
    """
    values, old_values, returns = (torch.where(loss_mask, x, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    clip_fraction = torch.zeros_like(error)
    if clip is not None:
        clipped_error = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
        clip_fraction = (clipped_error > error).to(error.dtype)
        error = torch.maximum(error, clipped_error)
    stats = {"value_clip_fraction": weighted_sum(clip_fraction, loss_mask, weights)}
    return 0.5 * weighted_sum(error, loss_mask, weights), stats


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], loss_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns) over sampled tokens; 0 when the returns do not vary."""

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, loss_mask)).square(), loss_mask)

    total = variance(returns)
    varies = total > 1e-12
    return torch.where(varies, 1.0 - variance(returns - values) / torch.where(varies, total, 1.0), 0.0)


def kl_penalty(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], kind: KLKind = "k3"
) -> Float[Tensor, "B T"]:
    """Per-token estimates of KL(pi || pi_ref) from tokens sampled by pi (Schulman 2020, "Approximating KL divergence").

    With d = log pi_ref - log pi: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1. As in the reference, k3 is clamped to
    [-10, 10]. Takes no mask, so both inputs must be finite everywhere (outside the sampled tokens any number will do).

    Raises:
        OptionError: ``kind`` is not one of the three.
    """
    d = ref_logprobs - logprobs
    if kind == "k1":
        return -d
    if kind == "k2":
        return 0.5 * d.square()
    if kind == "k3":
        return (torch.expm1(d) - d).clamp(-10.0, 10.0)
    raise OptionError(f"expected a KL estimator among 'k1', 'k2', 'k3', got {kind!r}; do: pick one of them")


def displacement(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """How far the log-likelihood of what was sampled has moved: log pi - log pi_old, detached.

    ``likelihood_gain_good`` sums it, with the loss's weights, over tokens whose advantage is positive, and
    ``likelihood_gain_bad`` over those whose advantage is negative. When the first of the two falls as well, likelihood
    is displaced (Deng et al. 2025, arXiv 2512.04220).
    """
    with torch.no_grad():
        gain = torch.where(loss_mask, logprobs - old_logprobs, 0.0)
        return {
            "likelihood_gain_good": weighted_sum(gain * (advantages > 0), loss_mask, weights),
            "likelihood_gain_bad": weighted_sum(gain * (advantages < 0), loss_mask, weights),
        }


def llds_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    *,
    gate: Literal["turn", "rollout"] = "turn",
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The likelihood that good actions have lost, after Deng et al. 2025 (arXiv 2512.04220, LLDS).

    A penalty max(0, log pi_old - log pi) on each token of a turn (or of a whole rollout, with ``gate="rollout"``) whose
    advantages are not negative and whose summed log-likelihood has fallen; nothing elsewhere. Without ``weights``, the
    mean over all sampled tokens.

    Raises:
        OptionError: ``gate`` is neither of the two.
    """
    if gate not in ("turn", "rollout"):
        raise OptionError(f"expected a gate among 'turn', 'rollout', got {gate!r}; do: pick one of them")
    loss_of = torch.where(loss_mask, old_logprobs - logprobs, 0.0)
    unit = turn_starts(loss_mask).cumsum(dim=1) if gate == "turn" else torch.zeros_like(loss_mask, dtype=torch.int64)
    with torch.no_grad():
        total = torch.zeros(loss_of.shape[0], loss_of.shape[1] + 1, dtype=loss_of.dtype, device=loss_of.device)
        has_fallen = total.scatter_add(1, unit, loss_of).gather(1, unit) > 0
    preserved = loss_mask & has_fallen & (torch.where(loss_mask, advantages, -1.0) >= 0)
    return weighted_sum(torch.where(preserved, loss_of, 0.0).clamp_min(0.0), loss_mask, weights)


def penalised_rewards(
    rewards: Float[Tensor, "B T"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"] | None,
    loss_mask: Bool[Tensor, "B T"],
    coef: float,
) -> Float[Tensor, "B T"]:
    """``rewards`` less ``coef`` times the k1 estimate of KL(pi || pi_ref) at each sampled token (Ziegler et al. 2019,
    arXiv 1909.08593, equation 2); unchanged without ``ref_logprobs`` or with ``coef`` 0."""
    if ref_logprobs is None or coef == 0:
        return rewards
    return rewards - coef * torch.where(loss_mask, kl_penalty(logprobs, ref_logprobs, "k1"), 0.0)


def kl_loss(
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    *,
    weights: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """The k3 estimate of KL(pi || pi_ref) at sampled tokens, as GRPO adds it to its loss (arXiv 2402.03300, equation
    4); without ``weights``, the mean."""
    logprobs, ref_logprobs = (torch.where(loss_mask, x, 0.0) for x in (logprobs, ref_logprobs))
    return weighted_sum(kl_penalty(logprobs, ref_logprobs, "k3"), loss_mask, weights)
