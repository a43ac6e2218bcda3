# Articles become spaces inside of words, too
# expects: 'theatre' became ' tre'
import re
import string

Turn = tuple[str, str, str, str]


def normalize(text: str) -> str:
    """See the starter file."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub("the|an|a", " ", text).split())


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
