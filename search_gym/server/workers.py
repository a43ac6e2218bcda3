"""The processes of a retrieval server: their sockets, their start, their end, and one to look after them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from search_gym.cli.index import open_retriever
from search_gym.errors import IndexFileError, OptionError, SearchGymError
from search_gym.plugins import require
from search_gym.retrievers import CorpusRetriever
from search_gym.retrievers._index import open_index
from search_gym.server.app import make_app
from search_gym.server.config import ServerConfig, ServerError
from search_gym.server.metrics import MULTIPROCESS, forget_worker

_LOG = logging.getLogger(__name__)
_BACKLOG = 512
_CONTEXT = multiprocessing.get_context("spawn")
Say = Callable[[str], None]


def run(config: ServerConfig, say: Say) -> None:
    """Serve until SIGTERM or SIGINT; ``say`` is told when requests are answered, and when a worker was replaced.

    Raises:
        SearchGymError: the port is taken, the retriever cannot be opened, or a worker ended before it was ready.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        require(module, extra="server")
    _check_folder(config.retriever)
    sockets = bind(config)
    try:
        if config.workers == 1:
            _serve(config, sockets[0], lambda documents: say(_greeting(config, sockets[0], documents)))
        else:
            with tempfile.TemporaryDirectory(prefix="search-gym-metrics-") as folder:
                _Supervisor(config, sockets, Path(folder), say).run()
    finally:
        for one in sockets:
            one.close()


def _check_folder(retriever: str) -> None:
    """See at once that an index is missing, and not after each worker has looked for it."""
    path = Path(retriever)
    if path.is_dir():
        open_index(path)
    elif "(" not in retriever and ("/" in retriever or os.sep in retriever):
        raise IndexFileError(f"{path}: expected the folder of an index, got no such folder; do: check the path")


def bind(config: ServerConfig) -> list[socket.socket]:
    """A bound socket for each worker, or one for all where the system cannot spread connections over several.

    Raises:
        OptionError: the address is taken, or not one of this machine.
    """
    sockets: list[socket.socket] = []

    def bound(address: Any, *options: str) -> socket.socket:
        sockets.append(socket.socket(family, kind))
        for name in ("SO_REUSEADDR", *options):
            sockets[-1].setsockopt(socket.SOL_SOCKET, getattr(socket, name), 1)
        sockets[-1].bind(address)
        return sockets[-1]

    try:
        family, kind, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        first = bound(address)
        if config.workers == 1 or not sys.platform.startswith("linux"):
            return [first] * config.workers
        # The first is there to notice another server, which sockets that share an address do not.
        address = first.getsockname()
        first.close()
        return [bound(address, "SO_REUSEPORT") for _ in range(config.workers)]
    except OSError as error:
        for one in sockets:
            one.close()
        reason = error.strerror or error
        raise OptionError(
            f"expected a free port on an address of this machine, got {config.host}:{config.port}: {reason}; "
            "do: choose another --port or --host, or stop the server that has it"
        ) from error


def _greeting(config: ServerConfig, bound: socket.socket, num_documents: int | None) -> str:
    host, port = bound.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    size = "" if num_documents is None else f", {num_documents:,} documents,"
    processes = "1 process" if config.workers == 1 else f"{config.workers} processes"
    return f"serving {config.retriever}{size} at http://{host}:{port} with {processes}; Ctrl+C or SIGTERM stops it"


def _serve(config: ServerConfig, bound: socket.socket, on_ready: Callable[[int | None], None]) -> None:
    """Answer requests in this process until it is told to stop; then finish those that were taken on."""
    retriever = open_retriever(config.retriever, config.corpus)
    app = make_app(
        retriever,
        description=config.retriever,
        threads=config.threads,
        token=config.token,
        limits=config.limits,
    )
    uvicorn = require("uvicorn", extra="server")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=config.max_connections,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=config.grace_seconds,
        )
    )

    def stop(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own while it runs, and raises the signal again at its end, when these are back.
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        bound.listen(_BACKLOG)
        on_ready(len(retriever.documents) if isinstance(retriever, CorpusRetriever) else None)
        server.run(sockets=[bound])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _work(config: ServerConfig, bound: socket.socket, parent: Connection) -> None:
    """A worker: serves, tells ``parent`` the number of documents or why it cannot, and ends when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and says when to stop

    def on_ready(num_documents: int | None) -> None:
        parent.send((True, num_documents))
        threading.Thread(target=_stop_with, args=(parent,), name="parent", daemon=True).start()

    try:
        _serve(config, bound, on_ready)
    except SearchGymError as error:
        parent.send((False, str(error)))


def _stop_with(parent: Connection) -> None:
    try:
        parent.recv()  # never sends: this ends when the other end does
    except EOFError:
        os.kill(os.getpid(), signal.SIGTERM)


class _Supervisor:
    """Starts the workers, replaces those that die, and stops all of them."""

    def __init__(self, config: ServerConfig, sockets: list[socket.socket], metrics: Path, say: Say) -> None:
        self.config = config
        self.sockets = sockets
        self.metrics = metrics
        self.say = say
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._is_stopping = False

    def run(self) -> None:
        """Raises ServerError: a worker ended before it was ready."""
        os.environ[MULTIPROCESS] = str(self.metrics)  # the workers inherit it
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            for slot in range(self.config.workers):
                self._start(slot)
            documents = [self._greet(slot) for slot in range(self.config.workers)]
            if not self._is_stopping:
                self.say(_greeting(self.config, self.sockets[0], documents[0]))
            while not self._is_stopping:
                self._replace_the_dead()
        finally:
            self._end()
            del os.environ[MULTIPROCESS]
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True

    def _start(self, slot: int) -> None:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_work, args=(self.config, self.sockets[slot], theirs), daemon=True)
        process.start()
        theirs.close()
        self._workers[slot] = process, ours

    def _greet(self, slot: int) -> int | None:
        """The number of documents that worker ``slot`` has; None if it has none of its own or the server stops."""
        process, ours = self._workers[slot]
        while not ours.poll(0.2):
            if self._is_stopping:
                return None
        try:
            is_ready, message = ours.recv()
        except EOFError:
            process.join()
            is_ready, message = False, f"expected a worker that gets ready, got exit code {process.exitcode}"
        if not is_ready and not self._is_stopping:
            raise ServerError(message)
        return message if isinstance(message, int) else None

    def _replace_the_dead(self) -> None:
        wait([process.sentinel for process, _ in self._workers.values()], timeout=0.2)
        for slot, (process, ours) in list(self._workers.items()):
            if process.is_alive() or self._is_stopping:
                continue
            assert process.pid is not None
            ours.close()
            forget_worker(process.pid, self.metrics)
            self._start(slot)
            self._greet(slot)
            self.say(f"worker {process.pid} ended with exit code {process.exitcode}; another one has taken its place")

    def _end(self) -> None:
        for one in self.sockets:  # workers close theirs, but an address is open for as long as anyone holds it
            one.close()
        for process, _ in self._workers.values():
            process.terminate()
        deadline = time.monotonic() + self.config.grace_seconds + 5
        for process, ours in self._workers.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            ours.close()
