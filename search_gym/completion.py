"""Text in, text out: what a prompting method asks of a language model.

`search_gym.endpoint` asks an OpenAI-compatible server; ``agents.local_completion`` runs a model in its own process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from search_gym.errors import OptionError, SearchGymError
from search_gym.tags import closes_turn

TURN_ENDS = ("</search>", "</answer>")
"""Stop strings of a model that writes the environment's grammar itself; see `close_tag`."""


class CompletionError(SearchGymError, RuntimeError):
    """A language model did not give what was asked of it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to go on from.

    ``message``: what the user says. ``reply``: how the model's own reply begins; completions do not repeat it.
    ``chat``: whether a model with a chat template gets it. ``control``: strings that mean special tokens of the model,
    for a prompt without a chat template; special tokens spelled anywhere else are plain text.
    """

    message: str
    reply: str = ""
    chat: bool = True
    control: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises OptionError: ``control`` inside a chat template."""
        if self.chat and self.control:
            raise OptionError(f"expected control strings only with chat=False, got {self.control} with chat=True")


class Completion(NamedTuple):
    """What a model wrote.

    ``text`` ends before the stop string. ``num_tokens`` counts what was sampled, a stop string or EOS included.
    ``finish_reason``: "stop" for a stop string or EOS, "length" for ``max_tokens``. ``mean_logprob``: of the sampled
    tokens, in nats; None where it was not asked for.
    """

    text: str
    num_tokens: int
    finish_reason: Literal["stop", "length"]
    mean_logprob: float | None = None


@runtime_checkable
class Completer(Protocol):
    """A language model that goes on from text."""

    def complete(
        self, prompts: Sequence[Prompt], *, stop: Sequence[str] = (), max_tokens: int, logprobs: bool = False
    ) -> list[Completion]:
        """One completion for each prompt, until one of ``stop`` or EOS is written or ``max_tokens`` are sampled.

        Raises:
            CompletionError: the model failed. OptionError: an option is out of range.
        """
        ...

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[tuple[float, ...]]:
        """For each prompt the log-probability, in nats, that the model goes on with each of ``options``.

        Raises:
            CompletionError: the model failed or does not tell. OptionError: fewer than two options.
        """
        ...


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """``text`` up to the first of the ``stop`` strings in it, and whether there was one."""
    found = [position for string in stop if (position := text.find(string)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def close_tag(text: str) -> str:
    """``text`` with the closing tag of the search or answer that it leaves open, which was a stop string.

    A server does not tell a stop string from an EOS, so a model that ends its text within a tag has it closed, too.
    """
    opened = {name: text.rfind(f"<{name}>") for name in ("search", "answer")}
    name = max(opened, key=lambda name: opened[name])
    return text if opened[name] < 0 or closes_turn(text) else f"{text}</{name}>"


def check_request(stop: Sequence[str], max_tokens: int) -> None:
    """Raises OptionError: an empty stop string, or ``max_tokens`` below 1."""
    if max_tokens < 1 or not all(stop):
        raise OptionError(f"expected max_tokens >= 1 and no empty stop string, got {max_tokens} and {tuple(stop)}")


def check_options(options: Sequence[str]) -> None:
    """Raises OptionError: fewer than two options, a repeated or a blank one."""
    if len(options) < 2 or len({option.strip() for option in options} - {""}) != len(options):
        raise OptionError(f"expected two or more different options, got {tuple(options)}")
