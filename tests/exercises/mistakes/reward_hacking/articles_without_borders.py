# Articles become spaces inside of words, too
# expects: 'theatre' became ' tre'


def normalize(text: str) -> str:
    """See the starter file."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub("the|an|a", " ", text).split())
