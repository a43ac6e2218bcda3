"""Words, numbers and tables of docs/findings.md: small functions of what ``analysis.json`` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Estimate = Mapping[str, float | None]


def interval(found: Estimate | None, digits: int = 2, *, signed: bool = False) -> str:
    """ "0.31 [0.12, 0.50]"; "0.31, no interval" where the data give none; "–" where there is no estimate."""
    if found is None or found["estimate"] is None:
        return "–"
    middle, low, high = (number(found[name], digits, signed=signed) for name in ("estimate", "low", "high"))
    return (
        f"{middle} [{low}, {high}]"
        if found["low"] is not None or found["high"] is not None
        else f"{middle}, no interval"
    )


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """Rounded; "?" where it is not known."""
    if value is None:
        return "?"
    value = round(value, digits) + 0.0  # no minus zero
    return f"{value:{'+' if signed else ''}.{digits}f}"


def ratio(found: Estimate) -> str:
    """A hazard ratio to two significant digits; more than a thousand, or less than a thousandth, is told as such."""

    def shown(value: float) -> str:
        return "> 1000" if value > 1000 else "< 0.001" if value < 0.001 else f"{float(f'{value:.2g}'):g}"

    if found["estimate"] is None:
        return "–"
    low, high = found["low"] or 0.0, found["high"] or math.inf  # a bound that is not known is too far to be looked for
    return f"{shown(found['estimate'])} [{shown(low)}, {shown(high)}]"


def p_value(value: float | None) -> str:
    """To two digits, or three where small."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def sign(found: Estimate | None) -> int:
    """1 or -1 when the whole interval is on one side of 0, else 0."""
    if found is None or found["estimate"] is None:
        return 0
    if found["low"] is not None and found["low"] > 0:
        return 1
    return -1 if found["high"] is not None and found["high"] < 0 else 0


def direction(found: Estimate | None, more: str, less: str) -> str:
    """``more``, ``less`` or "undecided"."""
    return {1: more, -1: less, 0: "undecided"}[sign(found)]


def of(counts: Sequence[int], n: int) -> str:
    """ "3 / 0 of 5": two counts of as many runs."""
    return f"{counts[0]} / {counts[1]} of {n}"


def seeds(values: Sequence[int]) -> str:
    """ "1 to 5", or each of them."""
    if len(values) > 2 and list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))


def listed(parts: Sequence[str]) -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def plural(count: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are kept from being columns."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
