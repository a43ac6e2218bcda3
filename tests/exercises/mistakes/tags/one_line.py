# The dot stops at a line break
# expects: does not match line breaks

PAIR = re.compile(r"<(search|answer)>(.*?)</\1>")
