# Mean and variance of the whole array, documents and padding included.
# expects: over padding and documents


def whiten(advantages, loss_mask):
    return np.where(loss_mask, (advantages - advantages.mean()) / np.sqrt(advantages.var(ddof=1) + 1e-8), 0.0)
