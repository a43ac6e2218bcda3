# A right answer anywhere in the episode is paid
# expects: The documents hold it


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    return float(any(normalize(right) in normalize(text) for right in answers))
