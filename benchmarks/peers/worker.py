"""One contestant in a process of its own: a JSON request a line in, a JSON reply a line out."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.peers.contestants import CONTESTANTS
from benchmarks.peers.episode import Contestant, Server

SERVERS = {
    "requests in parallel": {},
    "one request at a time": {"serial": True},
    "one query at a time": {"per_query": True},
}
"""What a search server may be like; each takes ``SECONDS`` a request, or a query."""

SECONDS = 0.01


def main(name: str) -> None:
    """Serve requests until the input ends."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    _, make = CONTESTANTS[name]
    fast = make(Server())
    slow: dict[str, Any] = {}

    def answer(request: dict[str, Any]) -> Any:
        if request["what"] == "check":
            return {
                "reward": fast.episode(),
                "whole": fast.played(1),
                "chunks": {str(n): _outcome(fast, n) for n in (2, 4)},
                "vectors": list(fast.vectors()),
            }
        if request["what"] == "episodes":
            calls = -(-request["count"] // fast.per_call)
            start = time.process_time()
            for _ in range(calls):
                fast.episode()
            return (time.process_time() - start) / (calls * fast.per_call) * 1e6
        server = request["server"]
        if server not in slow:
            slow[server] = make(Server(SECONDS, **SERVERS[server])).vectors()
        start = time.perf_counter()
        slow[server][request["vector"]]()
        return (time.perf_counter() - start) * 1e3

    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=replies, flush=True)
    os._exit(0)  # threads and loops of a library are nobody's concern any more


def _outcome(contestant: Contestant, num_chunks: int) -> Any:
    """What is played in so many chunks a turn, or what the library raised."""
    try:
        return contestant.played(num_chunks)
    except Exception as error:  # whatever a library raises is what is to be told
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1])
