# Documents that an earlier query has found are not returned again.
# expects: stay behind


def search(queries, documents, k):
    used, results = set(), []
    for found in overlap(queries, documents, len(documents)):
        fresh = [i for i in found if i not in used][:k]
        used.update(fresh)
        results.append(fresh)
    return results


def overlap(queries, documents, k):
    bags = [set(f"{title} {text}".lower().split()) for title, text in documents]
    scores = [[len(bag & set(query.lower().strip("?").split())) for bag in bags] for query in queries]
    return [sorted(range(len(bags)), key=lambda i, some=some: -some[i])[:k] for some in scores]
