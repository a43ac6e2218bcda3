# The idf is wrong, and the formula takes it
# expects: Mend idf first


def idf(word: str, documents: list[list[str]]) -> float:
    """See the starter file."""
    n = sum(word in document for document in documents)
    return math.log(1 + (len(documents) - n + 0.5) / (n + 1.0))
