# What lies outside the mask is multiplied by 0, which leaves NaN.
# expects: 0 * NaN is NaN


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp((logprobs - old_logprobs) * loss_mask)
    advantages = advantages * loss_mask
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    gradient = np.where(unclipped <= clipped, -weights * unclipped, 0.0)
    return -(weights * np.minimum(unclipped, clipped)).sum(), gradient
