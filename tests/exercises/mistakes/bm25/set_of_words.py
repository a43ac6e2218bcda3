# The query is made a set
# expects: holds twice was counted once


def bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    scores = np.zeros(len(documents))
    for word in set(query):
        f = np.array([document.count(word) for document in documents], dtype=np.float64)
        found = f > 0
        scores[found] += idf(word, documents) * f[found] / (f[found] + norm[found])
    return scores
