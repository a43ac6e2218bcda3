# The queries are made lower-case in place.
# expects: changed its queries


def search(queries, documents, k):
    for i, query in enumerate(queries):
        queries[i] = query.lower()
    return overlap(queries, documents, k)


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
