# Everything but letters, digits and space is punctuation
# expects: it holds '_', and no dash
import re

Turn = tuple[str, str, str, str]


def normalize(text: str) -> str:
    """See the starter file."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """See the starter file."""
    if answer is None:
        return 0.0
    return float(any(normalize(answer) == normalize(right) for right in answers))


def exploit_text(question: str) -> str:
    """See the starter file."""
    return f"<search> {question} </search>"


def exploit_containment(question: str, documents: list[str]) -> str:
    """See the starter file."""
    return f"<answer> {' '.join(documents)} </answer>"
