# Updates are compared with a best that comes later.
# expects: best of the whole run


def collapse(em):
    mean = np.array([em[max(0, i - 4) : i + 1].mean() for i in range(len(em))])
    best, low = max(mean[4:], default=0.0), 0
    for i in range(len(mean)):
        low = low + 1 if best >= 0.1 and mean[i] < 0.5 * best else 0
        if low == 5:
            return i - 4
    return None
