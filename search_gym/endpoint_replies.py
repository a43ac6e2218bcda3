"""What an OpenAI-compatible server is sent as a message, and what its replies say. No network here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from search_gym.completion import Completion, CompletionError, Prompt, cut_at
from search_gym.errors import SearchGymError

Api = Literal["chat", "completions"]
T = TypeVar("T")


class EndpointError(CompletionError):
    """An endpoint refused, failed, took too long or answered nonsense; the message names url, status and reply."""


class MalformedReplyError(SearchGymError, RuntimeError):
    """A reply of status 200 that is not what the API promises; the message names what is missing."""


def read_completion(
    reply: Mapping[str, Any], api: Api, prompt: Prompt, stop: Sequence[str], *, logprobs: bool
) -> Completion:
    """The first choice of ``reply``.

    The stop strings are looked for here too, because some servers ignore them and some keep them in the text.

    Raises:
        MalformedReplyError: there is no choice, no text or no count of tokens. EndpointError: no log-probabilities.
    """
    choice = _choice(reply)
    reason = choice.get("finish_reason")
    text = _get(choice, "message", dict).get("content") if api == "chat" else choice.get("text")
    if text is None and reason == "length":
        text = ""  # a reasoning model that never came to its reply
    if not isinstance(text, str):
        raise MalformedReplyError("text in a choice")
    num_tokens = _get(_get(reply, "usage", dict), "completion_tokens", int)
    if api == "chat":
        text = without_repetition(text, prompt.reply)
    text, stopped = cut_at(text, stop)
    mean = _mean_logprob(choice, api) if logprobs else None
    return Completion(text, num_tokens, "stop" if stopped or reason != "length" else "length", mean)


def read_options(reply: Mapping[str, Any], api: Api, options: Sequence[str]) -> tuple[float, ...]:
    """The log-probability of each option from those of the likeliest first tokens.

    A token stands for the one option that it begins, both stripped; the probabilities of several spellings add up. An
    option that none of the tokens begins gets -inf.

    Raises:
        MalformedReplyError: there is no choice. EndpointError: no log-probabilities, or none of an option.
    """
    return option_logprobs_of(_first_token(_choice(reply), api), options)


def chat_message(prompt: Prompt) -> str:
    """The one user message of ``prompt``: chat servers have no common way to let a model go on with its own reply."""
    if not prompt.reply:
        return prompt.message
    return (
        f"{prompt.message.rstrip()}\n\nYour reply has already begun as follows. Go on from its last character, "
        f"without repeating any of it:\n{prompt.reply}"
    )


def without_repetition(text: str, reply: str) -> str:
    """``text`` without the last line of ``reply`` at its start, which a chat model may say again."""
    last = reply.rpartition("\n")[2].strip()
    return text.lstrip().removeprefix(last) if last and text.lstrip().startswith(last) else text


def option_logprobs_of(found: Mapping[str, float], options: Sequence[str]) -> tuple[float, ...]:
    """`read_options`, from the log-probabilities ``found`` of first tokens.

    Raises:
        EndpointError: no token begins an option.
    """
    totals = [0.0] * len(options)
    for token, logprob in found.items():
        begun = [i for i, option in enumerate(options) if token.strip() and option.strip().startswith(token.strip())]
        if len(begun) == 1:
            totals[begun[0]] += math.exp(logprob)
    if not any(totals):
        raise EndpointError(
            f"expected one of {tuple(options)} among the endpoint's most probable tokens, got {sorted(found)!r:.200}; "
            "do: take a model that follows the instruction, or run it in this process, which scores each option"
        )
    return tuple(math.log(total) if total else -math.inf for total in totals)


def _choice(reply: Mapping[str, Any]) -> dict[str, Any]:
    choices = _get(reply, "choices", list)
    if not choices or not isinstance(choices[0], dict):
        raise MalformedReplyError("choice")
    return choices[0]


def _get(values: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = values.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MalformedReplyError(f"{key!r}")
    return value


def _no_logprobs(choice: Mapping[str, Any]) -> EndpointError:
    return EndpointError(
        f"expected log-probabilities, got none in {start_of(choice)}; "
        "do: ask a server that offers them (vLLM, SGLang and llama.cpp do), or run the model in this process"
    )


def _mean_logprob(choice: Mapping[str, Any], api: Api) -> float:
    logprobs = choice.get("logprobs")
    values: Any = None
    if isinstance(logprobs, dict) and api == "chat":
        content = logprobs.get("content")
        values = [row.get("logprob") for row in content if isinstance(row, dict)] if isinstance(content, list) else None
    elif isinstance(logprobs, dict):
        values = logprobs.get("token_logprobs")
    if not isinstance(values, list) or not values or not all(isinstance(value, (int, float)) for value in values):
        raise _no_logprobs(choice)
    return sum(values) / len(values)


def _first_token(choice: Mapping[str, Any], api: Api) -> dict[str, float]:
    """The log-probabilities of the likeliest first tokens, by their text; spellings of the same text add up."""
    logprobs = choice.get("logprobs")
    try:
        if api == "chat":
            rows = [(row["token"], row["logprob"]) for row in logprobs["content"][0]["top_logprobs"]]  # type: ignore[index]
        else:
            rows = list(logprobs["top_logprobs"][0].items())  # type: ignore[index]
        found: dict[str, float] = {}
        for token, logprob in rows:
            found[str(token)] = float(np.logaddexp(found.get(str(token), -math.inf), float(logprob)))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _no_logprobs(choice) from error
    return found


def start_of(body: object) -> str:
    """The first characters of a reply, on one line."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    return repr(" ".join(text.split())[:200])
