# The maximum of the two terms, and minus it for the loss.
# expects: the maximum in the place of the minimum


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    gradient = np.where(unclipped >= clipped, -weights * unclipped, 0.0)
    return -(weights * np.maximum(unclipped, clipped)).sum(), gradient
