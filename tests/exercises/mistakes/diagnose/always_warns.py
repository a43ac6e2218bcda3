# Any update with a KL above what is healthy on average.
# expects: raise the limit


def first_warning(metrics):
    found = np.flatnonzero(metrics["loss/approx_kl"] > 0.02)
    return int(found[0]) if found.size else None
