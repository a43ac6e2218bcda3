# Articles go before punctuation does
# expects: The order is part of the rule
import re
import string

Turn = tuple[str, str, str, str]


def normalize(text: str) -> str:
    text = re.sub(r"\b(a|an|the)\b", " ", text.lower())
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    return float(any(normalize(answer) == normalize(right) for right in answers))


def exploit_text(question: str) -> str:
    return f"<search> {question} </search>"


def exploit_containment(question: str, documents: list[str]) -> str:
    return f"<answer> {' '.join(documents)} </answer>"
