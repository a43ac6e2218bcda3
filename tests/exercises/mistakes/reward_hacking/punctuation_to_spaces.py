# Punctuation becomes a space
# expects: punctuation was replaced by a space


def normalize(text: str) -> str:
    text = re.sub(f"[{re.escape(string.punctuation)}]", " ", text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
