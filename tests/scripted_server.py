"""A real HTTP server on this machine that plays an OpenAI-compatible endpoint from a script, faults included."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What goes over the wire. ``cut``: bytes of the body that are sent before the connection is closed; ``delay`` and
    ``dribble``: seconds before the reply and between its bytes."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    dribble: float = 0.0


def chat_reply(text: str | None, *, num_tokens: int = 3, finish_reason: str = "stop", **choice: Any) -> Reply:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason, **choice}]
    return as_json({"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": num_tokens}})


def text_reply(text: str, *, num_tokens: int = 3, finish_reason: str = "stop", **choice: Any) -> Reply:
    choices = [{"index": 0, "text": text, "finish_reason": finish_reason, **choice}]
    return as_json({"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": num_tokens}})


def as_json(data: Any, **options: Any) -> Reply:
    return Reply(json.dumps(data).encode(), headers={"Content-Type": "application/json"}, **options)


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]
    at: float

    @property
    def text(self) -> str:
        """The prompt, or the content of the only message."""
        return self.body["prompt"] if "prompt" in self.body else self.body["messages"][0]["content"]


class ScriptedServer:
    """Answers each request with ``respond(request, number)``, numbers counting from 0; a context manager."""

    def __init__(self, respond: Callable[[Request, int], Reply]) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(self.path, dict(self.headers), body, time.monotonic())
                reply = server._enter(request)
                try:
                    self._send(reply)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    server._leave()

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.delay)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if reply.dribble:
                    for byte in reply.body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(reply.dribble)
                else:
                    self.wfile.write(reply.body[: reply.cut])
                if reply.cut is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def _enter(self, request: Request) -> Reply:
        with self._lock:
            number = len(self.requests)
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        return self.respond(request, number)

    def _leave(self) -> None:
        with self._lock:
            self._at_once -= 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
