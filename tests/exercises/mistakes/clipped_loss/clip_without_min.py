# The clipped term alone, without the minimum.
# expects: clip without min


def clipped_loss(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    advantages = np.where(loss_mask, advantages, 0.0)
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high)
    inside = clipped == ratio
    return -(weights * clipped * advantages).sum(), np.where(inside, -weights * ratio * advantages, 0.0)
