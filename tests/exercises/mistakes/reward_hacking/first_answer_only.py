# Only the first answer counts
# expects: Any of them is right


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    return float(normalize(answer) == normalize(answers[0]))
