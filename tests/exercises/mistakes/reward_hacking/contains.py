# The answer may contain a right one
# expects: Who lists everything is then always right


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    return float(any(normalize(right) in normalize(answer) for right in answers))
