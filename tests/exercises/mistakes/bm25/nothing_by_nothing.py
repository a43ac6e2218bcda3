# 0 / 0 at k1 = 0
# expects: the fraction is 0 / 0


def bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    """See the starter file."""
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    scores = np.zeros(len(documents))
    for word in query:
        f = np.array([document.count(word) for document in documents], dtype=np.float64)
        scores += idf(word, documents) * f / (f + norm)
    return scores
