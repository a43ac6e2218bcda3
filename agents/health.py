"""What goes wrong in training, noticed in the metrics of each update and said in plain words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Literal

from search_gym.errors import OptionError

Precision = Literal["float32", "bfloat16", "float16"]

_FEW = 3  # values that make a mean or a median
COLLAPSES = frozenset({"non-finite", "entropy collapse", "vanishing valid turns", "reward collapse"})


@dataclass(frozen=True)
class HealthConfig:
    """When the health of a run gives cause for alarm, and what to do then.

    An alarm needs evidence over several updates wherever one noisy update could deceive. Values that a metric of this
    run never had are not missed: what is not logged is not checked.
    """

    on_collapse: Literal["warn", "stop", "rollback"] = "warn"
    """What follows a collapse: a message, the end of the run, or the last healthy state again at half the rate."""
    patience: int = 10
    """Updates over which means are taken, and in each of which a fall must show before it counts."""
    fall: float = 0.5
    """Exact match and valid turns have collapsed when they stay below this part of their best mean."""
    least_em: float = 0.1
    """Best mean exact match from which on a fall can count; below, there is nothing to lose but noise."""
    least_valid_turns: float = 0.2
    """Best mean share of valid turns from which on a fall can count."""
    min_entropy: float = 0.05
    """Nats per token below which entropy is low."""
    entropy_fall: float = 0.1
    """Entropy has collapsed when it is low and below this part of what it was at the start."""
    solved_em: float = 0.9
    """Low entropy is no collapse while exact match is at least this: the policy is sure because it is right."""
    grad_norm_factor: float = 10.0
    """The gradient explodes when its norm exceeds the median of earlier updates by this factor."""
    min_grad_norm: float = 1.0
    """A gradient norm up to this is never an explosion."""
    max_logprob_mismatch: float | None = None
    """Nats between sampling and training log-probabilities; None: 1e-3 in float32, 0.02 in float16, 0.1 in bfloat16."""

    def __post_init__(self) -> None:
        if self.patience < _FEW or not all(0 < part < 1 for part in (self.fall, self.entropy_fall)):
            raise OptionError(
                f"expected patience of {_FEW} or more and fall and entropy_fall between 0 and 1, got {self.patience}, "
                f"{self.fall} and {self.entropy_fall}; do: change the option that is outside"
            )


@dataclass(frozen=True)
class Alarm:
    """One thing that went wrong."""

    name: str
    """What it is, in two or three words."""
    update: int
    """The update in which it began."""
    message: str
    """What happened, the numbers, and what to try."""

    @property
    def is_collapse(self) -> bool:
        """Whether the policy itself is in danger, so that ``on_collapse`` decides what follows.

        True of numbers that are not finite and of the collapse of entropy, valid turns or reward. False of a gradient
        explosion, which clipping may still contain, and of a log-probability mismatch, which is the fault of the
        software and would come back after any rollback.
        """
        return self.name in COLLAPSES


class HealthMonitor:
    """Raises an alarm when something begins to go wrong, and again only after it has been right in between.

    Reads "update", "loss/…", "rollout/em" and "rollout/valid_turns" of the metrics of each update.
    """

    def __init__(self, config: HealthConfig, *, precision: Precision = "float32") -> None:
        self.config = config
        self.max_logprob_mismatch = (
            _MISMATCH[precision] if config.max_logprob_mismatch is None else config.max_logprob_mismatch
        )
        self._active: set[str] = set()
        self._grad_norms: deque[float] = deque(maxlen=config.patience)
        self._first_entropy: float | None = None
        self._recent: dict[str, deque[float]] = {key: deque(maxlen=config.patience) for key in _WATCHED}
        self._best: dict[str, float] = {}

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """The alarms that begin with this update, whose number is ``metrics["update"]``."""
        found = dict(self._problems(metrics))
        new = [Alarm(name, int(metrics["update"]), found[name]) for name in found if name not in self._active]
        self._active = set(found)
        return new

    def state(self) -> dict[str, Any]:
        """What the monitor remembers, as JSON values."""
        return {
            "active": sorted(self._active),
            "grad_norms": list(self._grad_norms),
            "first_entropy": self._first_entropy,
            "recent": {key: list(values) for key, values in self._recent.items()},
            "best": dict(self._best),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` returned; with a shorter ``patience``, only the last updates count."""
        self._active = set(state["active"])
        self._grad_norms = deque(state["grad_norms"], self.config.patience)
        self._first_entropy = state["first_entropy"]
        self._recent = {key: deque(state["recent"][key], self.config.patience) for key in _WATCHED}
        self._best = dict(state["best"])

    def _problems(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        yield from self._non_finite(metrics)
        yield from self._gradient_explosion(metrics)
        yield from self._entropy_collapse(metrics)
        for key in _WATCHED:
            yield from self._lasting_fall(key, metrics)
        yield from self._logprob_mismatch(metrics)

    def _non_finite(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        names = [key for key, value in metrics.items() if key.startswith("loss/") and not math.isfinite(value)]
        skipped = metrics.get("loss/skipped_steps", 0.0)
        if names or skipped > 0:
            what = [*(f"{key} is {metrics[key]}" for key in names)]
            what += [f"{skipped:g} optimiser steps were skipped for a gradient that is not finite"] if skipped else []
            yield "non-finite", f"{', '.join(what)}; try a lower learning rate or float32"

    def _gradient_explosion(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        norm = metrics.get("loss/grad_norm", math.nan)
        if not math.isfinite(norm):
            return
        usual = median(self._grad_norms) if len(self._grad_norms) >= _FEW else math.inf
        self._grad_norms.append(norm)
        if norm > max(self.config.grad_norm_factor * usual, self.config.min_grad_norm):
            yield (
                "gradient explosion",
                f"the gradient norm is {norm:.3g}, and {usual:.3g} is usual; try a lower learning rate, a lower "
                "max_grad_norm or a longer warm-up",
            )

    def _entropy_collapse(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        entropy = metrics.get("loss/entropy", math.nan)
        if not math.isfinite(entropy):
            return
        if self._first_entropy is None:
            self._first_entropy = entropy
        is_low = entropy < min(self.config.min_entropy, self.config.entropy_fall * self._first_entropy)
        if is_low and metrics.get("rollout/em", 0.0) < self.config.solved_em:
            yield (
                "entropy collapse",
                f"entropy is {entropy:.3g} nats per token, {self._first_entropy:.3g} at the start; the policy hardly "
                "explores: try an entropy bonus, a higher clip_high, a larger KL weight or a lower learning rate",
            )

    def _lasting_fall(self, key: str, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        value = metrics.get(key, math.nan)
        if not math.isfinite(value):
            return
        name, what, advice = _WATCHED[key]
        recent = self._recent[key]
        recent.append(value)
        if len(recent) < _FEW:
            return
        best = self._best[key] = max(fmean(recent), self._best.get(key, 0.0))
        least = self.config.least_em if key == "rollout/em" else self.config.least_valid_turns
        is_low = len(recent) == self.config.patience and max(recent) < self.config.fall * best
        if best >= least and is_low:
            yield (
                name,
                f"{what} has been {max(recent):.3g} or less for {len(recent)} updates, after a mean of {best:.3g} at "
                f"best; {advice}",
            )

    def _logprob_mismatch(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        mismatch = metrics.get("loss/logprob_mismatch", 0.0)
        if mismatch > self.max_logprob_mismatch:
            yield (
                "log-probability mismatch",
                f"log-probabilities at sampling and at training differ by {mismatch:.3g} nats, and "
                f"{self.max_logprob_mismatch:.3g} is expected at most; check the temperature, the precision, dropout "
                "and that the sampler has the newest weights",
            )


_MISMATCH: Mapping[Precision, float] = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
_WATCHED = {
    "rollout/em": (
        "reward collapse",
        "exact match",
        "try a lower learning rate, a larger KL weight or an earlier checkpoint",
    ),
    "rollout/valid_turns": (
        "vanishing valid turns",
        "the share of valid turns",
        "try a lower learning rate, a larger KL weight or a reward for the format",
    ),
}
