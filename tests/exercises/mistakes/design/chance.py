# Ties are broken by chance.
# expects: chance decide
import random


def search(queries, documents, k):
    return [random.sample(found, min(k, len(found))) for found in overlap(queries, documents, 3 * k)]


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
