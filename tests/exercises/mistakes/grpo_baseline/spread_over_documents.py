# The advantage is on every column, documents and padding included.
# expects: on every token


def spread(advantages, loss_mask):
    return np.repeat(advantages[:, None], loss_mask.shape[1], axis=1)
