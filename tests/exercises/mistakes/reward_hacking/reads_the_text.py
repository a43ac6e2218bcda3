# The answer is read from the episode's text
# expects: `answer` is the one that counts


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if found:
        answer = found[-1]
    if answer is None:
        return 0.0
    return float(any(normalize(answer) == normalize(right) for right in answers))
