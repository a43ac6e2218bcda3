"""The options of `search_gym.endpoint` as flags of a command line: ``--endpoint URL --endpoint-model NAME``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from search_gym import endpoint
from search_gym.endpoint import Api


@dataclass(frozen=True)
class EndpointConfig(endpoint.EndpointConfig):
    """Where an OpenAI-compatible server is and how patiently it is asked."""

    url: Annotated[str, tyro.conf.arg(name="endpoint")] = ""
    """Base address of an OpenAI-compatible server, such as http://localhost:8000/v1; leave out to use --model."""
    model: Annotated[str, tyro.conf.arg(name="endpoint-model")] = ""
    """The model's name on that server."""
    api: Annotated[Api, tyro.conf.arg(name="endpoint-api")] = "chat"
    """Which call: "chat" for models with a chat template, "completions" to go on from plain text."""
    api_key_env: Annotated[str, tyro.conf.arg(name="endpoint-api-key-env")] = "OPENAI_API_KEY"
    """Environment variable that holds the API key; nothing is sent if it is not set."""
    timeout: Annotated[float, tyro.conf.arg(name="endpoint-timeout")] = 120.0
    """Seconds that a whole reply may take."""
    retries: Annotated[int, tyro.conf.arg(name="endpoint-retries")] = 5
    """How often a request is sent again after a failure that may pass."""
    backoff: Annotated[float, tyro.conf.arg(name="endpoint-backoff")] = 1.0
    """Seconds before the first retry; doubled each time, at most 60, or what the server's Retry-After says."""
    concurrency: Annotated[int, tyro.conf.arg(name="endpoint-concurrency")] = 8
    """Requests in flight at the same time."""
