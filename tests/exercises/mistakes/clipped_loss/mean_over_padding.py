# The mean over all (B, T) entries, padding included.
# expects: mean over padding


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    weights = np.full(loss_mask.shape, 1 / loss_mask.size)
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    gradient = np.where(unclipped <= clipped, -weights * unclipped, 0.0)
    return -(weights * np.minimum(unclipped, clipped)).sum(), gradient
