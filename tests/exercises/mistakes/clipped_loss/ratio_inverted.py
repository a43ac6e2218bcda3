# The ratio is pi_old / pi.
# expects: the ratio inverted


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, old_logprobs - logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    gradient = np.where(unclipped <= clipped, weights * unclipped, 0.0)
    return -(weights * np.minimum(unclipped, clipped)).sum(), gradient
