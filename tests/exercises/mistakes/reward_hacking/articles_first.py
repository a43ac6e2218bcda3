# Articles go before punctuation does
# expects: The order is part of the rule


def normalize(text: str) -> str:
    text = re.sub(r"\b(a|an|the)\b", " ", text.lower())
    return " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())
