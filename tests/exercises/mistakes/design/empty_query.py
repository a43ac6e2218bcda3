# There is no best word of no words.
# expects: search failed: ValueError


def search(queries, documents, k):
    for query in queries:
        max(query.split(), key=len)
    return overlap(queries, documents, k)


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
