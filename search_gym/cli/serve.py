"""Serve a retriever over HTTP, with the protocol of Search-R1's retrieval server.

    search-gym serve wiki/bm25
    search-gym serve "hybrid(bm25(index=wiki/bm25), dense(index=wiki/e5))" --workers 4 --port 8001
    search-gym serve bm25 --corpus passages.jsonl --host 0.0.0.0 --token-file token.txt

    curl http://127.0.0.1:8000/retrieve -d '{"queries": ["Who wrote Walden?"], "topk": 3, "return_scores": true}'

Only this machine can reach it unless --host says otherwise. SIGTERM and Ctrl+C finish the requests that were taken on.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

from search_gym.errors import OptionError
from search_gym.server.config import RequestLimits, ServerConfig

HELP = "serve a retriever over HTTP"
TOKEN = "SEARCH_GYM_TOKEN"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is served, where, by how many, and how much a request may ask for."""
    default, limits = ServerConfig(""), RequestLimits()
    parser.add_argument("retriever", help="folder of an index, or a retriever's description")
    parser.add_argument("--corpus", type=Path, help="documents, for a retriever that is described without an index")
    parser.add_argument("--host", default=default.host, help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=default.port, help="0 for any free one (default %(default)s)")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes (default %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=default.threads, help="searches at a time in a worker (default %(default)s)"
    )
    tokens = parser.add_mutually_exclusive_group()
    tokens.add_argument("--token", help="what clients must send as Authorization: Bearer TOKEN; others see it in `ps`")
    tokens.add_argument("--token-file", type=Path, help=f"file with the token (default: the variable {TOKEN}, if set)")
    parser.add_argument(
        "--grace-seconds",
        type=int,
        default=default.grace_seconds,
        help="time for requests to finish when the server is stopped (default %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        default=default.max_connections,
        help="open connections of a worker (default %(default)s)",
    )
    for name, text in (
        ("default_k", "documents per query where a request does not say"),
        ("max_k", "documents per query"),
        ("max_queries", "queries in a request"),
        ("max_query_characters", "characters in a query"),
        ("max_documents", "documents in an answer"),
        ("max_body_bytes", "bytes in a request"),
        ("body_seconds", "time in which a request's body has to arrive"),
        ("max_waiting", "requests that wait in a worker; others get status 503"),
    ):
        value = getattr(limits, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(value), default=value, help=f"{text} (default %(default)s)")
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> None:
    """Serve until a signal ends it."""
    from search_gym.server import workers

    config = ServerConfig(
        retriever=args.retriever,
        corpus=args.corpus,
        host=args.host,
        port=args.port,
        workers=args.workers,
        threads=args.threads,
        max_connections=args.max_connections,
        grace_seconds=args.grace_seconds,
        token=find_token(args.token, args.token_file),
        limits=RequestLimits(**{field.name: getattr(args, field.name) for field in fields(RequestLimits)}),
    )
    if not config.is_loopback and config.token is None:
        print(f"warning: everybody who can reach {config.host} can search; do: set --token-file", file=sys.stderr)
    workers.run(config, lambda text: print(text, flush=True))


def find_token(token: str | None, file: Path | None) -> str | None:
    """The token of the command line, of ``file``, or of the environment.

    Raises:
        OptionError: the file cannot be read.
    """
    if file is None:
        return token if token is not None else os.environ.get(TOKEN) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"expected a token in {file}, got {error!r}; do: check the path") from error
