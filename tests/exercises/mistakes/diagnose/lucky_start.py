# Means over fewer than 5 updates count as a best.
# expects: fewer than 5 updates counted


def collapse(em):
    mean = np.array([em[max(0, i - 4) : i + 1].mean() for i in range(len(em))])
    best, low = 0.0, 0
    for i in range(len(mean)):
        best = max(best, mean[i])
        low = low + 1 if best >= 0.1 and mean[i] < 0.5 * best else 0
        if low == 5:
            return i - 4
    return None
