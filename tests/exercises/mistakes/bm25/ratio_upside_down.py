# Long documents gain
# expects: upside down


def bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    norm = k1 * (1 - b + b * lengths.mean() / np.maximum(lengths, 1e-9))
    scores = np.zeros(len(documents))
    for word in query:
        f = np.array([document.count(word) for document in documents], dtype=np.float64)
        found = f > 0
        scores[found] += idf(word, documents) * f[found] / (f[found] + norm[found])
    return scores
