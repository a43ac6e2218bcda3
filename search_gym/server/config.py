"""What a retrieval server serves, to whom, and how much it takes on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path

from search_gym.errors import OptionError, SearchGymError


class ServerError(SearchGymError, RuntimeError):
    """A server cannot start, or cannot go on; the message says why."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for, and how many requests may be held; more is refused with a 4xx or a 503."""

    default_k: int = 3
    """Documents per query where a request does not say how many."""
    max_k: int = 100
    """Documents per query."""
    max_queries: int = 4096
    """Queries in a request."""
    max_query_characters: int = 32_768
    """Characters in a query."""
    max_documents: int = 100_000
    """Queries times documents per query."""
    max_body_bytes: int = 8 * 2**20
    """Bytes of a request's body."""
    body_seconds: float = 30.0
    """Seconds in which a request's body has to arrive."""
    max_waiting: int = 64
    """Requests that a worker lets wait while it searches for others."""

    def __post_init__(self) -> None:
        """Raises OptionError: a limit that lets nothing through."""
        for name in (f.name for f in fields(self)):
            lowest = 0 if name == "max_waiting" else 1
            if not getattr(self, name) >= lowest:
                raise OptionError(f"expected {name} >= {lowest}, got {getattr(self, name)}; do: raise it")
        if self.default_k > self.max_k:
            raise OptionError(
                f"expected default_k to be at most max_k, got {self.default_k} and {self.max_k}; do: change one of them"
            )


@dataclass(frozen=True)
class ServerConfig:
    """How a server is run. ``token`` is what clients must send as ``Authorization: Bearer TOKEN``; None: nothing."""

    retriever: str
    """An index folder or a retriever's description."""
    corpus: Path | None = None
    """Documents, for a retriever that is described without an index."""
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    """Processes; each opens the retriever itself, and memory-mapped files are shared between them."""
    threads: int = 1
    """Searches that a worker runs at the same time."""
    max_connections: int = 1000
    """Open connections of a worker."""
    grace_seconds: int = 30
    """Seconds that running and waiting requests get after a signal to stop."""
    token: str | None = field(default=None, repr=False)
    limits: RequestLimits = field(default_factory=RequestLimits)

    def __post_init__(self) -> None:
        """Raises OptionError: a number out of range, or a token that no header can hold."""
        for name in ("workers", "threads", "max_connections", "grace_seconds"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected {name} >= 1, got {getattr(self, name)}; do: raise it")
        if not 0 <= self.port < 2**16:
            raise OptionError(f"expected a port in [0, 65535], got {self.port}; do: choose another (0: any free one)")
        check_token(self.token)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_token(token: str | None) -> None:
    """Raises OptionError: ``token`` is empty or holds something other than printable ASCII without spaces."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise OptionError("expected a token of printable ASCII without spaces, got another one; do: make a new one")
