"""What a collapse is: the one definition that tables, statistics and pages of the study share.

In words: exact match, averaged over the last few updates, has collapsed when it stays below half of its best for
several updates in a row, that best having been worth losing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from search_gym.errors import OptionError

Kind = Literal["kept", "collapsed", "never learned"]
Curve = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Definition:
    """When exact match has collapsed.

    The limits suit rounds of about a hundred episodes. One such round of an unchanged policy varies by a tenth, because
    its questions are harder or easier than those before, and by less than half of that in the mean of five.
    """

    window: int = 5
    """Updates over which exact match is averaged: each one and those before it."""
    fraction: float = 0.5
    """Part of the best such mean so far, below which the mean counts as low."""
    patience: int = 5
    """Updates in a row that have to be low."""
    floor: float = 0.1
    """Least best mean from which there is something to lose, as in `agents.health`. A run that never gets there
    has never learned."""
    recovery: float = 0.75
    """Part of the best mean before the collapse that the mean has to regain, for ``patience`` updates in a row."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1 or not 0 < self.fraction < 1 or not 0 < self.recovery <= 1:
            raise OptionError(
                f"expected window and patience of 1 or more, fraction and recovery between 0 and 1, got {self}; do: "
                "change the one that is outside"
            )

    @property
    def words(self) -> str:
        """The definition as a sentence."""
        return (
            f"A run has collapsed when the mean exact match of the last {self.window} updates has been below "
            f"{self.fraction:g} of its best so far for {self.patience} updates in a row, that best being at least "
            f"{self.floor:g}; it collapsed at the first of them. A run whose mean never reached {self.floor:g} never "
            f"learned. A collapsed run has recovered when the mean is back at {self.recovery:g} of the best before the "
            f"collapse for {self.patience} updates in a row."
        )


DEFAULT = Definition()


@dataclass(frozen=True)
class Outcome:
    """What became of a run. Updates are numbered from 1."""

    kind: Kind
    onset: int | None
    """First update of the collapse."""
    peak: int
    """Update of the best mean before the collapse; of the whole run where there is none."""
    best: float
    """That mean."""
    final: float
    """The last mean."""
    recovered: int | None
    """First update at which a collapsed run had recovered."""

    @property
    def failed(self) -> bool:
        """Whether it collapsed or never learned."""
        return self.kind != "kept"

    @property
    def ended_at_zero(self) -> bool:
        """Whether no episode at all was right at the end: then groups are tied, and little can bring the run back."""
        return self.final == 0.0


def smoothed(em: Sequence[float] | Curve, window: int = DEFAULT.window) -> Curve:
    """The mean of each of the (n,) values and the up to ``window - 1`` before it."""
    values = np.asarray(em, dtype=np.float64)
    return np.array(
        [math.fsum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
    )


def outcome(em: Sequence[float] | Curve, definition: Definition = DEFAULT) -> Outcome:
    """What became of a run with exact match ``em`` (n,), a value for each update.

    Raises:
        OptionError: no value, or one that is not finite.
    """
    if len(em) == 0 or not np.isfinite(em).all():
        raise OptionError(f"expected exact match of one update or more, all finite, got {list(em)}; do: check the run")
    mean = smoothed(em, definition.window)
    best = running_best(mean, definition)
    onset = _first_stretch((mean < definition.fraction * best) & (best >= definition.floor), definition.patience)
    before = mean[:onset]
    start = min(definition.window, len(before)) - 1
    peak = start + int(np.argmax(before[start:]))
    kind: Kind = "collapsed" if onset is not None else "kept" if best[-1] >= definition.floor else "never learned"
    recovered = None
    if onset is not None:
        back = _first_stretch(mean[onset:] >= definition.recovery * mean[peak], definition.patience)
        recovered = None if back is None else onset + back + 1
    return Outcome(
        kind, None if onset is None else onset + 1, peak + 1, float(mean[peak]), float(mean[-1]), recovered
    )  # fmt: skip


def running_best(mean: Curve, definition: Definition = DEFAULT) -> Curve:
    """The best of the (n,) smoothed values up to each; those over fewer than ``window`` updates do not count, and give
    -inf, unless there are no others."""
    start = min(definition.window, len(mean)) - 1
    counted = np.where(np.arange(len(mean)) < start, -np.inf, mean)
    return np.maximum.accumulate(counted)


def collapse_update(em: Sequence[float], definition: Definition = DEFAULT) -> int | None:
    """The number of the update at which a run collapsed, from 1; None if it never did."""
    return outcome(em, definition).onset


def _first_stretch(is_so: npt.NDArray[np.bool_], length: int) -> int | None:
    """Where the first ``length`` True values in a row begin."""
    run = 0
    for i, so in enumerate(is_so):
        run = run + 1 if so else 0
        if run == length:
            return i + 1 - length
    return None
