"""A language model behind an OpenAI-compatible server, as a `Completer`.

Two calls are spoken, ``POST {url}/chat/completions`` and ``POST {url}/completions``, with the fields that OpenAI's API
reference, vLLM, SGLang, llama.cpp and ``transformers serve`` share.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from search_gym.completion import Completion, Prompt, check_options, check_request
from search_gym.endpoint_replies import (
    Api,
    EndpointError,
    MalformedReplyError,
    chat_message,
    read_completion,
    read_options,
    start_of,
)
from search_gym.errors import OptionError
from search_gym.plugins import require

if TYPE_CHECKING:
    import httpx2

__all__ = ["Api", "EndpointCompleter", "EndpointConfig", "EndpointError"]

T = TypeVar("T")

TOP_LOGPROBS = 20
_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class EndpointConfig:
    """Where an OpenAI-compatible server is and how patiently it is asked.

    ``url``: base address, such as http://localhost:8000/v1. ``model``: its name on that server. ``api``: "chat" for
    models with a chat template, "completions" to go on from plain text. ``api_key_env``: environment variable that
    holds the API key; nothing is sent if it is not set. ``timeout``: seconds that a whole reply may take. ``retries``:
    how often a request is sent again after a failure that may pass. ``backoff``: seconds before the first retry;
    doubled each time, at most 60, or what the server's Retry-After says. ``concurrency``: requests in flight at the
    same time.
    """

    url: str = ""
    model: str = ""
    api: Api = "chat"
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        """Raises OptionError: a url that is no address, no model name, or a number out of range."""
        if self.url and (urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc):
            raise OptionError(f"expected an endpoint like http://host:8000/v1, got {self.url!r}; do: name the scheme")
        if self.url and not self.model:
            raise OptionError("expected the model's name on the endpoint, got none; do: name the model")
        if not self.timeout > 0 or self.retries < 0 or not self.backoff >= 0 or self.concurrency < 1:
            raise OptionError(
                "expected timeout > 0, retries >= 0, backoff >= 0 and concurrency >= 1, got "
                f"{self.timeout}, {self.retries}, {self.backoff} and {self.concurrency}"
            )

    @property
    def base_url(self) -> str:
        """The address that calls are appended to; an address without a path gets ``/v1``."""
        url = self.url.rstrip("/")
        for suffix in ("/chat/completions", "/completions"):
            url = url.removesuffix(suffix)
        return url if urlsplit(url).path else url + "/v1"


@dataclass(frozen=True)
class _Failure:
    """Why a try failed: ``status`` of the reply or None without one, its first characters, whether to try again."""

    status: int | None
    text: str
    may_pass: bool = True
    wait: float = 0.0


@dataclass
class EndpointCompleter:
    """The `Completer` of ``config``; requests run in ``config.concurrency`` threads and results keep their order.

    ``temperature`` 0 is greedy as far as the server is; ``seed`` is sent where there is something to sample.
    """

    config: EndpointConfig
    temperature: float = 0.0
    seed: int = 0
    _client: httpx2.Client = field(init=False, repr=False)
    _closing: threading.Event = field(init=False, repr=False, default_factory=threading.Event)

    def __post_init__(self) -> None:
        """Raises OptionError: no url, or a negative ``temperature``. MissingDependencyError: no httpx2."""
        if not self.config.url or not self.temperature >= 0:
            raise OptionError(
                f"expected an endpoint and temperature >= 0, got {self.config.url!r} and {self.temperature}"
            )
        key = os.environ.get(self.config.api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise OptionError(
                f"expected printable ASCII in the environment variable {self.config.api_key_env}, got more"
            )
        httpx2 = require("httpx2", extra="http")
        limits = httpx2.Limits(max_connections=self.config.concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=self.config.timeout, limits=limits, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(
        self, prompts: Sequence[Prompt], *, stop: Sequence[str] = (), max_tokens: int, logprobs: bool = False
    ) -> list[Completion]:
        """See `Completer`; tokens are counted by the server (``usage.completion_tokens``).

        Raises:
            EndpointError: a request failed for good; requests that have not begun are dropped.
            OptionError: an option is out of range, or a prompt has control tokens, which only a local model can be fed.
        """
        options = self._sampling(stop, max_tokens)
        if logprobs:
            options["logprobs"] = True if self.config.api == "chat" else 1

        def read(reply: Mapping[str, Any], prompt: Prompt) -> Completion:
            return read_completion(reply, self.config.api, prompt, stop, logprobs=logprobs)

        return self._map([{**self._request(prompt), **options} for prompt in prompts], prompts, read)

    def converse(
        self, conversations: Sequence[Sequence[str]], *, stop: Sequence[str] = (), max_tokens: int
    ) -> list[Completion]:
        """The model's next part of each conversation, whose parts are the user's and the model's in turn.

        The first and the last part are the user's. In a chat each part is a message; in plain text they follow one
        another without anything between them.

        Raises:
            EndpointError, OptionError: as in `complete`; an even number of parts.
        """
        options = self._sampling(stop, max_tokens)
        requests = [{**self._common(), **_conversation(parts, self.config.api), **options} for parts in conversations]

        def read(reply: Mapping[str, Any], prompt: Prompt) -> Completion:
            return read_completion(reply, self.config.api, prompt, stop, logprobs=False)

        return self._map(requests, [Prompt("")] * len(requests), read)

    def _sampling(self, stop: Sequence[str], max_tokens: int) -> dict[str, Any]:
        check_request(stop, max_tokens)
        return {"max_tokens": max_tokens, **({"stop": list(stop)} if stop else {})}

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[tuple[float, ...]]:
        """See `Completer`: read from the log-probabilities of the first token, where the server offers them.

        An option is what its first token says: the token, stripped, begins the stripped option and no other; the
        probabilities of several spellings add up. An option outside the server's list gets -inf.

        Raises:
            EndpointError: no log-probabilities, or none of the options among them. OptionError: as in `complete`.
        """
        check_options(options)
        wanted: dict[str, Any] = {"max_tokens": 1, "logprobs": TOP_LOGPROBS}
        if self.config.api == "chat":
            wanted |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}

        def read(reply: Mapping[str, Any], prompt: Prompt) -> tuple[float, ...]:
            return read_options(reply, self.config.api, options)

        return self._map([{**self._request(prompt), **wanted} for prompt in prompts], prompts, read)

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        if prompt.control:
            raise OptionError(
                f"expected a prompt without control tokens for an endpoint, got {prompt.control}; "
                "do: run the model in this process"
            )
        parts = [prompt.message + prompt.reply if self.config.api == "completions" else chat_message(prompt)]
        return {**self._common(), **_conversation(parts, self.config.api)}

    def _common(self) -> dict[str, Any]:
        seed = {"seed": self.seed} if self.temperature > 0 else {}
        return {"model": self.config.model, "temperature": self.temperature, **seed}

    def _map(
        self,
        requests: Sequence[Mapping[str, Any]],
        prompts: Sequence[Prompt],
        read: Callable[[dict[str, Any], Prompt], T],
    ) -> list[T]:
        """What ``read`` makes of the reply to each of ``requests``, in their order."""
        self._closing.clear()
        with ThreadPoolExecutor(self.config.concurrency, thread_name_prefix="endpoint") as executor:
            futures = [
                executor.submit(self._ask, request, lambda reply, prompt=prompt: read(reply, prompt))
                for request, prompt in zip(requests, prompts, strict=True)
            ]
            try:
                return [future.result() for future in futures]
            finally:
                self._closing.set()
                executor.shutdown(wait=True, cancel_futures=True)

    def _ask(self, request: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """Send ``request`` until ``read`` makes something of the reply or the tries are used up."""
        call = "chat/completions" if self.config.api == "chat" else "completions"
        url = f"{self.config.base_url}/{call}"
        for attempt in range(self.config.retries + 1):
            outcome = self._try(url, request, read)
            if not isinstance(outcome, _Failure):
                return outcome
            wait = max(min(self.config.backoff * 2**attempt, _LONGEST_WAIT), outcome.wait)
            if not outcome.may_pass or attempt == self.config.retries or self._closing.wait(wait):
                self._fail(url, outcome, attempt + 1)
        raise AssertionError("unreachable: the last try returns or raises")

    def _try(self, url: str, request: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T | _Failure:
        import httpx2

        status, body = None, b""
        try:
            deadline = time.monotonic() + self.config.timeout
            with self._client.stream("POST", url, json=request) as response:
                status = response.status_code
                for part in response.iter_bytes():
                    body += part
                    if time.monotonic() > deadline:
                        got = f"no whole reply within {self.config.timeout} s, only {start_of(body)}"
                        return _Failure(status, got)
                wait = _waiting_time(response.headers.get("Retry-After", ""))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            text = f"{type(error).__name__}: {error}" + (f" after {start_of(body)}" if body else "")
            return _Failure(status, text, may_pass=not isinstance(error, httpx2.UnsupportedProtocol))
        if status != 200:
            return _Failure(status, start_of(body), status in _TRANSIENT_STATUSES or status >= 500, wait)
        try:
            reply = json.loads(body)
            if not isinstance(reply, dict):
                raise MalformedReplyError("a JSON object")
            return read(reply)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            return _Failure(status, f"something other than JSON: {start_of(body)}")
        except MalformedReplyError as error:
            return _Failure(status, f"no {error} in {start_of(body)}")

    def _fail(self, url: str, failure: _Failure, tries: int) -> NoReturn:
        advice = {
            401: f"put a valid key into the environment variable {self.config.api_key_env}",
            403: f"put a key that may use this model into {self.config.api_key_env}",
            404: "check the endpoint's address, the api and the model's name",
            429: "lower concurrency or raise retries",
        }.get(failure.status or 0, "check that the server is up and speaks this API, then run again with --resume")
        got = "no reply" if failure.status is None else f"status {failure.status}"
        raise EndpointError(
            f"expected a reply of {self.config.model!r} from {url}, got {got} in {tries} "
            f"{'try' if tries == 1 else 'tries'}, the last one: {failure.text}; do: {advice}"
        )


def _conversation(parts: Sequence[str], api: Api) -> dict[str, Any]:
    if len(parts) % 2 == 0:
        raise OptionError(f"expected a conversation in which the user spoke last, got {len(parts)} parts")
    if api == "completions":
        return {"prompt": "".join(parts)}
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": part} for i, part in enumerate(parts)]}


def _waiting_time(retry_after: str) -> float:
    """The seconds of a Retry-After header, at most a minute; a date, which it may also be, counts as none."""
    return min(float(retry_after), _LONGEST_WAIT) if retry_after.isdecimal() else 0.0
