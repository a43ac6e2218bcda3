# Every search earns a little
# expects: searches were paid


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.1 * sum(turn[0] == "search" for turn in turns)
    return float(any(normalize(answer) == normalize(right) for right in answers)) + 0.1 * sum(
        turn[0] == "search" for turn in turns
    )
