"""Parts of documentation pages that a benchmark writes, between markers that say which one."""

from __future__ import annotations


def put(page: str, name: str, command: str, text: str) -> str:
    """``page`` with ``text`` between its markers called ``name``, of ``python -m command``.

    Raises:
        ValueError: the page does not have them.
    """
    begin, end = f"<!-- {name}:begin (made by `python -m {command}`; do not edit) -->", f"<!-- {name}:end -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"expected the markers {begin!r} and {end!r}, got none; do: put them where the text belongs")
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
