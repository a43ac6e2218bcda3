# The first sums are divided by 5 too.
# expects: divided by 5


def smooth(em):
    return np.convolve(em, np.ones(5) / 5)[: len(em)]
