# The advantage is shared out among the tokens.
# expects: divided among the tokens


def spread(advantages, loss_mask):
    return advantages[:, None] * loss_mask / np.maximum(1, loss_mask.sum(axis=1, keepdims=True))
