# The answer may be a part of a right one
# expects: or nothing at all, is then paid


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    return float(any(normalize(answer) in normalize(right) for right in answers))
