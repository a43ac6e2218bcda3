# Everything but letters, digits and space is punctuation
# expects: it holds '_', and no dash


def normalize(text: str) -> str:
    """See the starter file."""
    text = re.sub(r"[^\w\s]", "", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
