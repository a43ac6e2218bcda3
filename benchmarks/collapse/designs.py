"""Experimental designs: which levels the cells of a group have. A cell is what it has that is not at the centre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod

from benchmarks.collapse.factors import Level
from search_gym.errors import OptionError

Chosen = dict[str, Level]
Varied = Mapping[str, Sequence[Level]]


def crossing(factors: Varied) -> list[Chosen]:
    """Every combination of the levels."""
    return [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]


def one_at_a_time(factors: Varied) -> list[Chosen]:
    """The centre, then every level of every factor by itself."""
    return [{}, *({name: level} for name, levels in factors.items() for level in levels)]


def fraction(factors: Varied, generators: Mapping[str, str]) -> list[Chosen]:
    """A two-level fractional factorial (Box and Hunter 1961, "The 2^(k-p) fractional factorial designs").

    The factors without a generator are crossed. With the first level of a factor as -1 and the second as +1, a factor
    with the generator "a*b*c" has the product of the signs of a, b and c, so that 2^(k-p) cells tell apart the main
    effects of k factors. Words of the defining relation of at least 4 letters (resolution IV) keep main effects clear
    of interactions of two.

    Raises:
        OptionError: a factor without two levels, or a generator of factors that are not crossed.
    """
    for name, levels in factors.items():
        if len(levels) != 2:
            raise OptionError(f"expected two levels of {name} in a fraction, got {list(levels)}; do: name two")
    crossed = [name for name in factors if name not in generators]
    for name, words in generators.items():
        unknown = [word for word in _words(words) if word not in crossed]
        if name not in factors or unknown or len(set(_words(words))) < len(_words(words)):
            raise OptionError(
                f"expected a generator of a factor of the fraction to be a product of different ones among {crossed}, "
                f'got {name} = "{words}"; do: correct it'
            )
    cells = []
    for signs in product((-1, 1), repeat=len(crossed)):
        sign = dict(zip(crossed, signs, strict=True))
        sign |= {name: prod(sign[word] for word in _words(words)) for name, words in generators.items()}
        cells.append({name: levels[sign[name] > 0] for name, levels in factors.items()})
    return cells


def _words(generator: str) -> list[str]:
    return [word.strip() for word in generator.split("*")]
