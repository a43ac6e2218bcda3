"""The eight exercises of the classroom, and the slots of the trainers that a student's functions go into.

The material of an exercise lies in ``material/NAME``, with underscores in its name: ``page.md`` (what to do and why),
``starter.py`` (typed stubs), ``test_starter.py`` (visible tests), ``checks.py`` (what `search_gym.exercises.checking`
runs), and data files. Everything in it needs numpy alone.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_gym.errors import UnknownNameError

if TYPE_CHECKING:
    from search_gym.exercises.checking import Check

MATERIAL = Path(__file__).with_name("material")


@dataclass(frozen=True)
class Exercise:
    """One exercise. ``functions`` are what the student writes in the file ``file_name``."""

    number: int
    name: str
    title: str
    minutes: int
    """How long it takes a student who knows numpy and has read the pages before."""
    functions: tuple[str, ...]
    slot: str
    """The key of `SLOTS` that one of ``functions``, of the same name, goes into."""
    trainer: str = "agents.ppo"
    """A module whose algorithm has this slot."""

    @property
    def file_name(self) -> str:
        """The file that a student edits and hands in."""
        return f"my_{self.name.replace('-', '_')}.py"

    @property
    def folder(self) -> Path:
        """Where the material lies."""
        return MATERIAL / self.name.replace("-", "_")

    @property
    def page(self) -> str:
        """The text of ``page.md``."""
        return (self.folder / "page.md").read_text(encoding="utf-8")

    @property
    def checks(self) -> Sequence[Check]:
        """The checks of ``checks.py``, in the order in which they should be understood."""
        return importlib.import_module(f"{__package__}.material.{self.folder.name}.checks").CHECKS


EXERCISES = (
    Exercise(
        1,
        "tags",
        "Turns, tags and the mask of sampled tokens",
        30,
        ("parse_turn", "turn_length", "loss_mask", "info_mask"),
        "loss_mask",
    ),
    Exercise(
        2,
        "reward-hacking",
        "A reward, and how to be paid for nothing",
        30,
        ("normalize", "reward", "exploit_text", "exploit_containment"),
        "reward",
    ),
    Exercise(3, "bm25", "BM25 from its formula", 40, ("idf", "bm25_scores"), "bm25_scores"),
    Exercise(4, "gae", "Advantages across turns", 45, ("gae",), "gae"),
    Exercise(
        5,
        "clipped-loss",
        "PPO's clipped loss and its gradient",
        45,
        ("token_weights", "whiten", "clipped_loss", "clip_fraction", "k3"),
        "clipped_loss",
    ),
    Exercise(
        6,
        "grpo-baseline",
        "The group as a baseline",
        40,
        ("group_advantages", "spread", "zero_variance_groups", "coefficients"),
        "group_advantages",
        trainer="agents.grpo",
    ),
    Exercise(
        7,
        "diagnose",
        "What killed this run?",
        60,
        ("smooth", "collapse", "dead_since", "first_warning", "cause"),
        "first_warning",
    ),
    Exercise(
        8,
        "design",
        "A retriever that finds the second hop",
        60,
        ("search",),
        "search",
        trainer="agents.grpo",
    ),
)


@dataclass(frozen=True)
class Slot:
    """A place in the trainers for a student's function: how it is called, on numpy arrays and plain Python data."""

    signature: str
    meaning: str


SLOTS = {
    "loss_mask": Slot(
        "loss_mask(spans: list[tuple[str, int, int]], length: int) -> (length,) bool",
        "Which tokens of an episode are trained on. A span is (kind, start, stop), kind 'prompt', 'action' or "
        "'observation'; the spans of an episode lie end to end.",
    ),
    "reward": Slot(
        "reward(answer: str | None, answers: list[str], turns: list[tuple[str, str, str, str]], text: str) -> float",
        "What an episode is paid. answer: content of the answering turn, None without one; answers: all that are "
        "right; a turn is (event, content, text of the policy, observation after it); text: all after the prompt.",
    ),
    "bm25_scores": Slot(
        "bm25_scores(query: list[str], documents: list[list[str]], k1: float, b: float) -> (num_documents,) float64",
        "The score of every document for a query, both as lists of lower-case words; the best top_k are retrieved.",
    ),
    "search": Slot(
        "search(queries: list[str], documents: list[tuple[str, str]], k: int) -> list[list[int]]",
        "At most k documents for each query, best first, as indices into documents, each a (title, text).",
    ),
    "gae": Slot(
        "gae(rewards, values, loss_mask: (B, T) bool, gamma: float, lam: float) -> (advantages, returns)",
        "Generalised advantage estimation; rewards, values and both results are (B, T) float64.",
    ),
    "clipped_loss": Slot(
        "clipped_loss(logprobs, old_logprobs, advantages, loss_mask: (B, T) bool, weights: (B, T), clip_low: float, "
        "clip_high: float) -> (loss, gradient)",
        "The clipped policy loss, the sum over sampled tokens of weights times a token's loss (float), and its "
        "derivative with respect to logprobs, (B, T) float64. The weights of a whole mini-batch add up to 1; a call "
        "may get a part of its rows.",
    ),
    "group_advantages": Slot(
        "group_advantages(rewards: (B,), group_ids: (B,) int64, normalize_std: bool = True, "
        "leave_one_out: bool = False) -> (B,)",
        "The advantage of each rollout within its group, float64.",
    ),
    "first_warning": Slot(
        "first_warning(metrics: dict[str, (U,) float64]) -> int | None",
        "The index of the first update that is a warning of a collapse, None without one. Called after every update "
        "with all metrics so far, NaN where an update has none.",
    ),
}


def load(name: str) -> Exercise:
    """The exercise of this name or number.

    Raises:
        UnknownNameError: there is none; the message suggests the closest names.
    """
    for exercise in EXERCISES:
        if name.replace("_", "-") in (exercise.name, str(exercise.number)):
            return exercise
    known = [exercise.name for exercise in EXERCISES]
    close = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known exercises: {', '.join(known)}."
    raise UnknownNameError(f"expected the name or number of an exercise, got {name!r}; {hint}")
