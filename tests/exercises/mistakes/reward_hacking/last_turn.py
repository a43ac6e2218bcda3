# The last turn is taken for the answer
# expects: the answer was read from the last turn, which may be a search


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """See the starter file."""
    answer = turns[-1][1] if turns else answer
    return float(any(normalize(answer or "") == normalize(right) for right in answers))
