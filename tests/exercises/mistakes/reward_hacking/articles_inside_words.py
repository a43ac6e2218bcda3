# Articles are deleted inside of words
# expects: inside of words


def normalize(text: str) -> str:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub("the|an|a", "", text).split())
