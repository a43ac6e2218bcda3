# The last pair counts, as in the original's reward
# expects: the last pair was taken


def parse_turn(text: str) -> tuple[str, str]:
    pairs = PAIR.findall(text)
    return (pairs[-1][0], pairs[-1][1].strip()) if pairs else ("invalid", "")
