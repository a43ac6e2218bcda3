"""Exercise 1: turns, tags and masks. Fill in the four functions; page.md says what they are for."""

import numpy as np

Span = tuple[str, int, int]
"""(kind, start, stop): tokens start .. stop - 1 were written as kind, "prompt", "action" or "observation"."""


def parse_turn(text: str) -> tuple[str, str]:
    """What the policy did in a turn whose text is ``text``.

    A pair is ``<search>`` with the first ``</search>`` after it, or ``<answer>`` with the first ``</answer>`` after it.
    The pair that opens first counts. Tags are written exactly so, in lower case and without spaces.

    Returns:
        (event, content): ("search", query) or ("answer", answer), the content without white space at its ends; or
        ("invalid", "") when there is no pair.
    """
    raise NotImplementedError


def turn_length(pieces: list[str]) -> int:
    """How many tokens belong to a turn whose tokens have the texts ``pieces``.

    The turn ends with the first token whose text completes ``</search>`` or ``</answer>``, wherever the tag began and
    whatever else that token holds. All tokens belong to it when none does.
    """
    raise NotImplementedError


def loss_mask(spans: list[Span], length: int) -> np.ndarray:
    """Which of an episode's ``length`` tokens the policy sampled, and is therefore trained on: (length,) bool.

    The spans lie end to end; ``length`` may be larger than the last stop, the rest being padding.
    """
    raise NotImplementedError


def info_mask(spans: list[Span], length: int) -> np.ndarray:
    """Which of an episode's ``length`` tokens the environment wrote after the prompt: (length,) bool."""
    raise NotImplementedError
