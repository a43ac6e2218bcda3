# A run that never learned collapses all the same.
# expects: never learned


def collapse(em):
    mean = np.array([em[max(0, i - 4) : i + 1].mean() for i in range(len(em))])
    best, low = 0.0, 0
    for i in range(len(mean)):
        if i >= 4:
            best = max(best, mean[i])
        low = low + 1 if mean[i] < 0.5 * best else 0
        if low == 5:
            return i - 4
    return None
