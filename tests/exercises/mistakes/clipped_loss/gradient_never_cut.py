# The loss is right, but the gradient is that of the unclipped term everywhere.
# expects: the clip never cuts


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    unclipped = ratio * advantages
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages
    gradient = -weights * unclipped
    return -(weights * np.minimum(unclipped, clipped)).sum(), gradient
