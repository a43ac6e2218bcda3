# The content keeps its white space
# expects: keeps its white space


def parse_turn(text: str) -> tuple[str, str]:
    pair = PAIR.search(text)
    return (pair[1], pair[2]) if pair else ("invalid", "")
