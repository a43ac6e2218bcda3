"""What a study may vary: every factor's name, its levels, and the options of a run that a level stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agents.config import pick
from search_gym.errors import OptionError

Level = str | int | float | bool
Levels = Mapping[str, Level]
Options = dict[str, Any]
"""Values of configuration fields by their dotted path, such as ``optimizer.learning_rate``."""

VALUE_RATE = 10.0  # the value head starts from nothing, and learns so many times as fast as the language model
CONSTANT = 1.0
"""Part of the learning rate that is left at the end: all of it, as in the reference, lest a falling rate hides what
would have come."""
TRAIN_ON_DOCUMENTS = "study.train_on_documents"
"""The one option that no configuration has, because it is a fault: see `trainer.StudyTrainer`."""
FORMAT_WARMED = "format-warmed"
"""The model that `warm_up` makes; runs know it by this name, and find it in the folder of the study."""


@dataclass(frozen=True)
class Size:
    """How much of everything a run gets."""

    updates: int = 40
    """Rounds of rollouts."""
    rollouts_per_update: int = 120
    """Episodes in a round under the preset "matched"; 120 can be cut into groups of 1, 3, 5 and 8."""
    prompts_per_update: int = 24
    """Questions in a round under the preset "search_r1", where algorithms have equal questions, not equal episodes."""

    def rollouts(self, levels: Levels) -> int:
        """Episodes in a round."""
        if levels["preset"] == "search_r1":
            return self.prompts_per_update * int(levels["group_size"])
        return self.rollouts_per_update


@dataclass(frozen=True)
class Factor:
    """One thing to vary. ``options`` says what a run with ``levels[name]`` needs, given its other levels."""

    name: str
    label: str
    center: Level
    """The level of a run that does not vary this, unless the study says otherwise."""
    check: Callable[[Any], str | None]
    """What is expected instead of a level; None if it is right."""
    options: Callable[[Levels, Size], Options]
    algorithms: tuple[str, ...] | None = None
    """Those that know it; None: all."""

    def applies_to(self, algorithm: str) -> bool:
        """Whether runs of ``algorithm`` can vary this."""
        return self.algorithms is None or algorithm in self.algorithms


def _one_of(*levels: Level) -> Callable[[Any], str | None]:
    def check(level: Any) -> str | None:
        known = any(level == other and type(level) is type(other) for other in levels)
        return None if known else f"one of {list(levels)}"

    return check


def _number(what: str, kind: type[int] | type[float], low: float, high: float = float("inf")) -> Any:
    def check(level: Any) -> str | None:
        is_number = isinstance(level, int if kind is int else (int, float)) and not isinstance(level, bool)
        return None if is_number and low <= level <= high else what

    return check


def _field(name: str, path: str) -> Callable[[Levels, Size], Options]:
    return lambda levels, size: {path: levels[name]}


def _learning_rate(levels: Levels, size: Size) -> Options:
    rate = float(levels["learning_rate"])
    return {"optimizer.learning_rate": rate, "optimizer.value_learning_rate": VALUE_RATE * rate}


def _preset(levels: Levels, size: Size) -> Options:
    rollouts = size.rollouts(levels)
    if levels["preset"] == "matched":
        return {"rollouts_per_update": rollouts}
    return {
        "rollouts_per_update": rollouts,
        "env.close_think": False,
        "optimizer.weight_decay": 0.01,
        "optimizer.epsilon": 1e-8,
        "optimizer.warmup_updates": int(0.285 * size.updates),
        "optimizer.value_warmup_updates": int(0.015 * size.updates),
    }


def _updates_per_round(levels: Levels, size: Size) -> Options:
    rollouts, steps = size.rollouts(levels), int(levels["updates_per_round"])
    if rollouts % steps:
        raise OptionError(
            f"expected updates_per_round to divide the {rollouts} episodes of a round, got {steps}; do: change one"
        )
    return {"minibatch_size": rollouts // steps}


def _kl(levels: Levels, size: Size) -> Options:
    if levels["kl"] == "none":
        return {"kl_coef": 0.0}
    return {"kl": levels["kl"], "kl_coef": levels["kl_coef"]}


def _noise(levels: Levels, size: Size) -> Options:
    noise = float(levels["retrieval_noise"])
    return {"env.retriever": f"noisy(bm25, probability={noise:g})" if noise else "bm25"}


def _information_mask(levels: Levels, size: Size) -> Options:
    return {TRAIN_ON_DOCUMENTS: not levels["information_mask"]}


def _value_mask(levels: Levels, size: Size) -> Options:
    return {"value.mask": "sampled" if levels["value_mask"] else "response"}


def _base(levels: Levels, size: Size) -> Options:
    return {"model": "tiny" if levels["base"] == "base" else FORMAT_WARMED}


def _value_clip(levels: Levels, size: Size) -> Options:
    return {"value.clip": levels["value_clip"] or None}  # 0 stands for none


def _nothing(levels: Levels, size: Size) -> Options:
    return {}


_SHARE = _number("a number from 0 to 1", float, 0.0, 1.0)
_WEIGHT = _number("a number of 0 or more", float, 0.0)

_COUNT = _number("1 or more", int, 1)

CATALOGUE: Mapping[str, Factor] = {
    factor.name: factor
    for factor in (
        Factor("preset", "preset", "matched", _one_of("matched", "search_r1"), _preset),
        Factor("learning_rate", "learning rate", 2e-3, _number("a number above 0", float, 1e-12), _learning_rate),
        Factor("group_size", "group size", 5, _COUNT, _field("group_size", "group_size")),
        Factor("updates_per_round", "updates per round", 4, _COUNT, _updates_per_round),
        Factor("kl", "KL", "none", _one_of("none", "k1-reward", "k3-loss"), _kl),
        Factor("kl_coef", "KL weight", 0.005, _number("a number above 0", float, 1e-12), _nothing),
        Factor("top_p", "top-p", 1.0, _number("a number above 0, up to 1", float, 1e-3, 1.0), _field("top_p", "top_p")),
        Factor("information_mask", "information mask", True, _one_of(True, False), _information_mask),
        Factor("value_mask", "value mask", True, _one_of(True, False), _value_mask, ("ppo",)),
        Factor("critic", "critic", "shared", _one_of("shared", "separate"), _field("critic", "value.critic"), ("ppo",)),
        Factor("value_clip", "value clip", 0.0, _WEIGHT, _value_clip, ("ppo",)),
        Factor("retrieval_noise", "retrieval noise", 0.0, _SHARE, _noise),
        Factor("top_k", "top-k", 1, _number("1 to 5", int, 1, 5), _field("top_k", "env.top_k")),
        Factor("reward", "reward", "em", _one_of("em", "format"), _field("reward", "env.reward")),
        Factor("base", "base model", "base", _one_of("base", FORMAT_WARMED), _base),
        Factor("clip_high", "upper clip", 0.2, _WEIGHT, _field("clip_high", "clip_high"), ("ppo", "grpo", "dapo")),
        Factor("llds", "LLDS weight", 0.0, _WEIGHT, _field("llds", "llds_coef"), ("grpo",)),
        Factor("entropy", "entropy bonus", 0.0, _WEIGHT, _field("entropy", "entropy_coef")),
        Factor("max_rounds", "most rounds for an update", 1, _COUNT, _field("max_rounds", "max_rounds"), ("dapo",)),
    )
}

PRESET_LEVELS: Mapping[str, Mapping[str, Levels]] = {
    "search_r1": {
        "ppo": {
            "group_size": 1,
            "updates_per_round": 2,
            "kl": "k1-reward",
            "kl_coef": 0.001,
            "value_mask": False,
            "critic": "separate",
            "value_clip": 0.5,
            "entropy": 0.001,
        },
        "grpo": {
            "group_size": 5,
            "updates_per_round": 10,
            "kl": "k3-loss",
            "kl_coef": 0.001,
            "top_p": 0.95,
            "entropy": 0.001,
        },
    }
}
"""What else a preset decides for an algorithm (SEARCH_R1's scripts; see `agents.presets.search_r1`). A study may still
set a level of its own."""


def check_level(name: str, level: Any) -> Level:
    """``level``, if factor ``name`` has it.

    Raises:
        UnknownNameError, OptionError: there is no such factor, or no such level.
    """
    factor = CATALOGUE[pick("factor", name, tuple(CATALOGUE))]
    expected = factor.check(level)
    if expected is not None:
        raise OptionError(f"expected {expected} as a level of {name}, got {level!r}; do: correct the study")
    return float(level) if isinstance(factor.center, float) else level


def complete(algorithm: str, levels: Levels, center: Levels) -> dict[str, Level]:
    """The level of every factor that applies to ``algorithm``: ``levels``, else the preset's, else the ``center``'s.

    Raises:
        OptionError: a factor of ``levels`` does not apply to ``algorithm``, or the preset has no values for it.
    """
    foreign = [name for name in levels if not CATALOGUE[name].applies_to(algorithm)]
    if foreign:
        raise OptionError(f"expected factors that {algorithm} has, got {foreign}; do: leave them out")
    full = {name: center.get(name, factor.center) for name, factor in CATALOGUE.items() if factor.applies_to(algorithm)}
    preset = levels.get("preset", full["preset"])
    if preset != "matched":
        by_algorithm = PRESET_LEVELS[str(preset)]
        if algorithm not in by_algorithm:
            raise OptionError(
                f"expected an algorithm among {list(by_algorithm)} for the preset {preset!r}, got {algorithm!r}; "
                "do: leave it out"
            )
        full |= by_algorithm[algorithm]
    return full | dict(levels)


def options_of(levels: Levels, size: Size) -> Options:
    """The options of a run with a level for each factor.

    Raises:
        OptionError: the sizes do not divide one another.
    """
    found: Options = {"updates": size.updates, "optimizer.final_fraction": CONSTANT}
    for name in levels:
        found |= CATALOGUE[name].options(levels, size)
    return found
