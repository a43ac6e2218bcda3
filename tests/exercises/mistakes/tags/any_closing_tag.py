# Any closing tag closes any opening tag
# expects: was closed by the other one

PAIR = re.compile(r"<(search|answer)>(.*?)</(?:search|answer)>", re.DOTALL)
