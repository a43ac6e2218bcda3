# The update at which the collapse is certain, not the one at which it began.
# expects: the last of the 5


def collapse(em):
    mean = np.array([em[max(0, i - 4) : i + 1].mean() for i in range(len(em))])
    best, low = 0.0, 0
    for i in range(len(mean)):
        if i >= 4:
            best = max(best, mean[i])
        low = low + 1 if best >= 0.1 and mean[i] < 0.5 * best else 0
        if low == 5:
            return i
    return None
