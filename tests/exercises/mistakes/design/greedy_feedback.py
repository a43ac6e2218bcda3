# Searches again with the words that are left and those that are new, whatever their order.
# expects: Weakest are
from collections import Counter


def search(queries, documents, k):
    bags = [frozenset(re.findall(r"\w+", f"{title} {text}".lower())) for title, text in documents]
    holders = Counter(word for bag in bags for word in bag)
    idf = {word: math.log(1 + (len(bags) - n + 0.5) / (n + 0.5)) for word, n in holders.items()}
    return [feedback(frozenset(re.findall(r"\w+", query.lower())), bags, idf, k) for query in queries]


def feedback(asked, bags, idf, k):
    found, current = [], asked
    while len(found) < k:
        scores = {i: sum(idf[word] for word in sorted(bag & current)) for i, bag in enumerate(bags) if i not in found}
        best = max(scores, key=lambda i: scores[i], default=None)
        if best is None or scores[best] == 0:
            break
        found.append(best)
        left = current - bags[best]
        current = (left if left & idf.keys() else current) | (bags[best] - asked)
    return found
