# Words in common are paid
# expects: words in common were paid
import re
import string

Turn = tuple[str, str, str, str]


def normalize(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    if answer is None:
        return 0.0
    said = normalize(answer).split()
    best = 0.0
    for right in answers:
        words = normalize(right).split()
        common = sum(min(said.count(word), words.count(word)) for word in set(words))
        best = max(best, 2 * common / (len(said) + len(words)))
    return best


def exploit_text(question: str) -> str:
    return f"<search> {question} </search>"


def exploit_containment(question: str, documents: list[str]) -> str:
    return f"<answer> {' '.join(documents)} </answer>"
