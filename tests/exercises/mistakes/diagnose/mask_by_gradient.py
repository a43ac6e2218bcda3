# Tells unmasked documents by a gradient that explodes, which it need not.
# expects: row 0


def cause(metrics):
    if np.nanmax(metrics["loss/grad_norm"]) > 50:
        return "unmasked documents"
    if np.nanmax(metrics["loss/entropy"]) > 2:
        return "entropy bonus"
    return "steps too large" if np.nanmax(metrics["loss/approx_kl"]) > 0.08 else "healthy"
