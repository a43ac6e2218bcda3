# A row is divided by T, not by its number of sampled tokens.
# expects: divided by T
def token_weights(loss_mask, aggregation):
    if aggregation == "token-mean":
        return loss_mask / loss_mask.sum()
    return loss_mask / loss_mask.shape[1] / loss_mask.shape[0]
