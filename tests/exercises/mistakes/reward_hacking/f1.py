# Words in common are paid
# expects: words in common were paid


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    said = normalize(answer).split()
    best = 0.0
    for right in answers:
        words = normalize(right).split()
        common = sum(min(said.count(word), words.count(word)) for word in set(words))
        best = max(best, 2 * common / (len(said) + len(words)))
    return best
