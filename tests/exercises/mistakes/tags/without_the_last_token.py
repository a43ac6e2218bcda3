# The token that completes the tag is cut off
# expects: the token that completes the tag was left out


def turn_length(pieces: list[str]) -> int:
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if "</search>" in text or "</answer>" in text:
            return count - 1
    return len(pieces)
