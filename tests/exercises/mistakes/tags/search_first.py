# A search anywhere comes before an answer
# expects: a search was looked for before an answer


def parse_turn(text: str) -> tuple[str, str]:
    for event in ("search", "answer"):
        pair = re.search(f"<{event}>(.*?)</{event}>", text, re.DOTALL)
        if pair:
            return event, pair[1].strip()
    return ("invalid", "")
