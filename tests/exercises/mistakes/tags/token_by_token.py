# A closing tag is looked for in each token alone
# expects: each token's text was looked at alone


def turn_length(pieces: list[str]) -> int:
    text = ""
    for count, piece in enumerate(pieces, 1):
        text = piece
        if "</search>" in text or "</answer>" in text:
            return count
    return len(pieces)
