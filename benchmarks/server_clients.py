"""Clients that ask a retrieval server: as fast as they are answered, or whether they are answered or not."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


class Client:
    """A connection that is kept; HTTP/1.1 by hand, because a full client takes more of the machine than the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> int:
        """The status of the answer, after all of it has been read."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        head = f"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in answer.split("\r\n") if line.lower().startswith("content-length:"))
        await reader.readexactly(int(length.partition(":")[2]))
        return int(answer.split(" ", 2)[1])

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


def summary(latencies: Sequence[float], seconds: float, queries: int) -> dict[str, float]:
    """Figures of answered requests, in milliseconds and per second."""
    if len(latencies) < 2:
        return {"requests": len(latencies)}
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "requests": len(latencies),
        "requests_per_second": round(len(latencies) / seconds, 1),
        "queries_per_second": round(len(latencies) * queries / seconds, 1),
        "p50_ms": round(1000 * cuts[49], 1),
        "p99_ms": round(1000 * cuts[98], 1),
    }


async def closed_loop(
    port: int, bodies: Sequence[bytes], clients: int, *, seconds: float, queries: int
) -> dict[str, float]:
    """``clients`` that each ask again as soon as they are answered, for so many seconds; a body has ``queries``.

    Raises:
        RuntimeError: an answer has another status than 200.
    """
    latencies: list[float] = []
    start = time.perf_counter()

    async def play(number: int) -> None:
        client = Client(port)
        turn = number
        while (began := time.perf_counter()) < start + seconds:
            status = await client.ask(bodies[turn % len(bodies)])
            if status != 200:
                raise RuntimeError(f"expected status 200, got {status}")
            latencies.append(time.perf_counter() - began)
            turn += clients
        await client.close()

    await asyncio.gather(*map(play, range(clients)))
    return summary(latencies, time.perf_counter() - start, queries)


async def open_loop(
    port: int, bodies: Sequence[bytes], rate: float, watch: Callable[[], float], *, seconds: float, queries: int
) -> dict[str, Any]:
    """Requests that arrive ``rate`` times a second, whatever becomes of them; ``watch`` gives the memory in MB.

    Raises:
        RuntimeError: an answer has another status than 200 or 503.
    """
    rng = random.Random(0)
    idle: list[Client] = []
    answers: list[tuple[int, float]] = []
    memory: list[float] = []

    async def one(body: bytes, due: float) -> None:
        client = idle.pop() if idle else Client(port)
        status = await client.ask(body)
        answers.append((status, time.perf_counter() - due))
        idle.append(client)

    start = due = time.perf_counter()
    next_look = start
    tasks: set[asyncio.Task[None]] = set()
    while due < start + seconds:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(bodies[rng.randrange(len(bodies))], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if time.perf_counter() >= next_look:
            memory.append(watch())
            next_look += seconds / 18
    await asyncio.gather(*tasks)
    took = time.perf_counter() - start
    connections = len(idle)
    for client in idle:
        await client.close()
    served, refused = ([latency for status, latency in answers if status == wanted] for wanted in (200, 503))
    if len(served) + len(refused) != len(answers):
        raise RuntimeError(f"expected status 200 or 503, got {sorted({status for status, _ in answers})}")
    return {
        "offered_per_second": round(len(answers) / took, 1),
        "refused_share": round(len(refused) / len(answers), 3),
        "served": summary(served, took, queries),
        "refused": summary(refused, took, queries),
        "most_connections": connections,
        "rss_mb_over_time": memory,
    }
