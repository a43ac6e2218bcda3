# The answer is read from the episode's text
# expects: `answer` is the one that counts
import re
import string

Turn = tuple[str, str, str, str]


def normalize(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    if found:
        answer = found[-1]
    if answer is None:
        return 0.0
    return float(any(normalize(answer) == normalize(right) for right in answers))


def exploit_text(question: str) -> str:
    return f"<search> {question} </search>"


def exploit_containment(question: str, documents: list[str]) -> str:
    return f"<answer> {' '.join(documents)} </answer>"
