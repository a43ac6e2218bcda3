# The mean of the updates around each one.
# expects: window around


def smooth(em):
    return np.array([em[max(0, i - 2) : i + 3].mean() for i in range(len(em))])
