# A word is looked for in the text
# expects: letters inside of other words were found


def idf(word: str, documents: list[list[str]]) -> float:
    """See the starter file."""
    n = sum(word in " ".join(document) for document in documents)
    return math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
