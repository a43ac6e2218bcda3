# Another logarithm
# expects: the logarithm is to base 2


def idf(word: str, documents: list[list[str]]) -> float:
    n = sum(word in document for document in documents)
    return math.log2(1 + (len(documents) - n + 0.5) / (n + 0.5))
