# Exact match of single updates in the place of its mean.
# expects: exact match itself


def collapse(em):
    mean = np.asarray(em)
    best, low = 0.0, 0
    for i in range(len(mean)):
        if i >= 4:
            best = max(best, mean[i])
        low = low + 1 if best >= 0.1 and mean[i] < 0.5 * best else 0
        if low == 5:
            return i - 4
    return None
