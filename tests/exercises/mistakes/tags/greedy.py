# The pattern takes as much as it can
# expects: the pattern is greedy

PAIR = re.compile(r"<(search|answer)>(.*)</\1>", re.DOTALL)
