# The limit is made of the whole run's median.
# expects: looks ahead


def first_warning(metrics):
    kl = metrics["loss/approx_kl"]
    found = np.flatnonzero(kl > 4 * np.nanmedian(kl))
    return int(found[0]) if found.size else None
