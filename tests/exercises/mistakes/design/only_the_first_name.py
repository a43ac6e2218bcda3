# A comparison has two names; only documents about the first are returned.
# expects: Does each name
def search(queries, documents, k):
    results = []
    for query in queries:
        named = [title for title, _ in documents if title in query]
        first = min(named, key=query.find, default=None)
        about = [i for i, (title, _) in enumerate(documents) if title == first]
        results.append(sorted(about, key=lambda i: -sum(word in query for word in documents[i][1].split()))[:k])
    return results
