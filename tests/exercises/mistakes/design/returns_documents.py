# Documents in the place of their indices.
# expects: Return indices


def search(queries, documents, k):
    return [[documents[i] for i in found] for found in overlap(queries, documents, k)]


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
