# The right answers are compared as they are
# expects: the right answers were not normalised


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    return float(any(normalize(answer) == right for right in answers))
