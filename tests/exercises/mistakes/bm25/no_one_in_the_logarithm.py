# Robertson's idf, which turns negative
# expects: the 1 in the logarithm is missing


def idf(word: str, documents: list[list[str]]) -> float:
    n = sum(word in document for document in documents)
    return math.log((len(documents) - n + 0.5) / (n + 0.5))
