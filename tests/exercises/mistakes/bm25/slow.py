# n is counted again for every document and word
# expects: count it once for each word of the query
# seconds: 5


def bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> np.ndarray:
    lengths = np.array([len(document) for document in documents], dtype=np.float64)
    norm = k1 * (1 - b + b * lengths / lengths.mean())
    scores = np.zeros(len(documents))
    for i, document in enumerate(documents):
        for word in query:
            f = document.count(word)
            weights = [idf(each, documents) for each in document]
            if f:
                scores[i] += weights[document.index(word)] * f / (f + norm[i])
    return scores
