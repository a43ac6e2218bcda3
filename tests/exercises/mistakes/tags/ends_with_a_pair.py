# A turn ends with a whole pair
# expects: whether it was opened or not


def turn_length(pieces: list[str]) -> int:
    """See the starter file."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        text += piece
        if PAIR.search(text):
            return count
    return len(pieces)
