# The text has to end with the tag
# expects: has to end with the tag


def turn_length(pieces: list[str]) -> int:
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if text.endswith(("</search>", "</answer>")):
            return count
    return len(pieces)
