"""Real retrieval servers in processes of their own: sound ones, a retriever with troubles to serve, and faulty ones.

``python -m tests.retrieval_servers FAULT,FAULT,...`` is a server that answers the first requests with these faults, the
others truly, and ``GET /count`` with the number of requests so far.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from search_gym.errors import PartialRetrievalError, RetrievalError
from search_gym.retrievers import Document

ROOT = Path(__file__).parents[1]
START_SECONDS = 60


class ServerProcess:
    """A server that is started by ``command``, whose first line of output ends or goes on after its address."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> ServerProcess:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if readable else ""
        if "http://" not in line:
            self.kill()
            assert self.process.stderr is not None
            raise AssertionError(f"no server: {line!r} {self.process.stderr.read()}")
        self.url = "http://" + line.partition("http://")[2].split()[0]
        return self

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End it and its workers at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def serve(retriever: str, *options: str, port: int = 0) -> ServerProcess:
    """``search-gym serve``."""
    return ServerProcess(["search_gym", "serve", retriever, "--port", str(port), *options])


def faulty(*faults: str) -> ServerProcess:
    """A server that answers its first requests with ``faults``."""
    return ServerProcess(["tests.retrieval_servers", ",".join(faults)])


def write_corpus(path: Path, documents: Sequence[Document]) -> Path:
    """A passage file."""
    rows = [{"id": d.doc_id, "contents": f'"{d.title}"\n{d.text}'} for d in documents]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return one.getsockname()[1]


# A retriever to serve


class Troubled:
    """Finds the query itself; a query that names a trouble gets it. ``log`` lists what was asked.

    A search waits while the folder ``hold`` has a file with the name of a query of it.
    """

    def __init__(self, log: str | None, hold: str | None) -> None:
        self.log = log
        self.hold = hold

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        if self.log is not None:
            with Path(self.log).open("a", encoding="utf-8") as file:
                file.write("".join(f"{query}\n" for query in queries))
        while self.hold is not None and any(Path(self.hold, query).exists() for query in queries):
            time.sleep(0.01)
        results: list[Any] = [[Document(query, "", query, 1.0)] for query in queries]
        if "fail" in queries:
            raise RetrievalError("the disk is gone")
        if "fail in part" in queries:
            results[0] = RetrievalError("a bad block")
            raise PartialRetrievalError("1 of 2 queries failed", results)
        if "crash" in queries:
            raise ZeroDivisionError("secret")
        if "no score" in queries:
            return [[Document("d", "", "", float("nan"))]]
        return results[1:] if "too few" in queries else results


def troubled(documents: Sequence[Document], *, log: str | None = None, hold: str | None = None) -> Troubled:
    return Troubled(log, hold)


# Faulty servers


def _answer(queries: Sequence[str], k: int, scores: bool = True) -> bytes:
    items = [{"id": f"d{rank}", "contents": f'"Title {rank}"\ntext'} for rank in range(k)]
    found = [{"document": item, "score": 1.0 / (rank + 1)} if scores else item for rank, item in enumerate(items)]
    return json.dumps({"result": [found for _ in queries]}).encode()


def _http(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _reset(connection: socket.socket) -> None:
    """Close with a reset, as a process that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()


def _dribble(connection: socket.socket, data: bytes) -> None:
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def _slow(connection: socket.socket, data: bytes) -> None:
    time.sleep(60.0)
    connection.sendall(data)


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "true": _http,
    "no JSON": lambda good: _http(b'{"result": [[{]'),
    "not UTF-8": lambda good: _http(good.replace(b"Title", b"\xff\xfe")),
    "HTML": lambda good: _http(b"<html>Welcome to nginx!</html>", "200 OK", "Content-Type: text/html"),
    "no result": lambda good: _http(b'{"results": []}'),
    "too few lists": lambda good: _http(b'{"result": []}'),
    "NaN": lambda good: _http(good.replace(b"1.0", b"NaN")),
    "an error with status 200": lambda good: _http(b'{"error": "index is loading"}'),
    "redirect": lambda good: _http(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/retrieve"),
    "500": lambda good: _http(b"Internal Server Error", "500 Internal Server Error"),
    "422": lambda good: _http(b'{"detail": "topk"}', "422 Unprocessable Entity"),
    "429": lambda good: _http(b"slow down", "429 Too Many Requests", "Retry-After: 1"),
    "502": lambda good: _http(b"Bad Gateway", "502 Bad Gateway"),
    "503": lambda good: _http(b"busy", "503 Service Unavailable", "Retry-After: 0"),
    "truncated": lambda good: _http(good[: len(good) // 2], length=len(good)),
    "length too long": lambda good: _http(good, length=len(good) + 100),
    "length too short": lambda good: _http(good, length=len(good) - 10),
    "no HTTP": lambda good: b"SSH-2.0-OpenSSH_9.6\r\n",
    "closed": lambda good: b"",
}
_SENDERS: dict[str, Callable[[socket.socket, bytes], None]] = {"slow": _slow, "dribble": _dribble}


class _Faulty:
    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        self.count = 0
        self.lock = threading.Lock()

    def talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            request = file.readline()
            headers = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name.lower()] = value
            if request.startswith(b"GET"):
                connection.sendall(_http(str(self.count).encode()))
                return
            values = json.loads(file.read(int(headers["content-length"])))
            with self.lock:
                fault = self.faults[self.count] if self.count < len(self.faults) else "true"
                self.count += 1
            good = _answer(values["queries"], values["topk"])
            if fault == "reset":
                connection.sendall(_http(good[:20], length=len(good)))
                time.sleep(0.1)
                _reset(connection)
            elif fault in _SENDERS:
                try:
                    _SENDERS[fault](connection, _http(good))
                except OSError:
                    return  # the client did not wait
            else:
                connection.sendall(FAULTS[fault](good))


def main(faults: str) -> None:
    server = _Faulty([fault for fault in faults.split(",") if fault])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.talk, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
