# An episode without an answer breaks the reward
# expects: AttributeError


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return float(any(normalize(answer) == normalize(right) for right in answers))
