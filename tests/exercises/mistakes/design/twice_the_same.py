# What both names find is returned twice.
# expects: used twice


def search(queries, documents, k):
    return [(found[:1] * 2 + found[1:])[:k] for found in overlap(queries, documents, k)]


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
