# Documents of one subject are taken to lie next to each other.
# expects: Does each name
def search(queries, documents, k):
    titles = [title for title, _ in documents]
    results = []
    for query in queries:
        named = [title for title in titles if title in query]
        start = titles.index(named[0]) if named else 0
        results.append(list(range(start, min(len(documents), start + k))))
    return results
