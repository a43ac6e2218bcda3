# clip_low and clip_high have changed places.
# expects: exchanged


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_high, 1 + clip_low) * advantages
    gradient = np.where(unclipped <= clipped, -weights * unclipped, 0.0)
    return -(weights * np.minimum(unclipped, clipped)).sum(), gradient
