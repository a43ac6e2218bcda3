# Occurrences in place of documents
# expects: occurrences were counted


def idf(word: str, documents: list[list[str]]) -> float:
    n = sum(document.count(word) for document in documents)
    return math.log(1 + max(-0.9, (len(documents) - n + 0.5) / (n + 0.5)))
