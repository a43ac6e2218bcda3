# Tags are read in any case
# expects: tags in capitals were read

PAIR = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)


def parse_turn(text: str) -> tuple[str, str]:
    pair = PAIR.search(text)
    return (pair[1].lower(), pair[2].strip()) if pair else ("invalid", "")
