# Every ratio outside the interval counts, whichever way its token should go.
# expects: every ratio outside


def clip_fraction(logprobs, old_logprobs, advantages, loss_mask, weights, clip_low, clip_high):
    ratio = np.exp(np.where(loss_mask, logprobs - old_logprobs, 0.0))
    return float((weights * ((ratio < 1 - clip_low) | (ratio > 1 + clip_high))).sum())
