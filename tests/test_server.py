"""The retrieval server, as a real process: the protocol, its limits, too many clients, and a graceful end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_gym import retrievers
from search_gym.cli import main
from search_gym.cli.serve import find_token
from search_gym.corpus import format_contents
from search_gym.errors import OptionError
from search_gym.server.config import RequestLimits, ServerConfig
from search_gym.server.requests import RequestError, RetrieveRequest, read_request
from tests import conformance
from tests.retrieval_servers import ServerProcess, free_port, serve, write_corpus

SENTENCE = re.compile(r"(?s)expected .+, got .+; do: .+")
LIMITS = RequestLimits(max_k=10, max_queries=4, max_query_characters=6, max_documents=20)

# Requests

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "queries": st.lists(st.text(st.characters(exclude_categories=[]), max_size=8), max_size=5) | JSON,
        "topk": st.integers(-1, 12) | JSON,
        "return_scores": st.booleans() | JSON,
        "else": JSON,
    },
)


def is_valid(values: Any) -> bool:
    """The rules of the protocol and of ``LIMITS``, one by one."""
    if type(values) is not dict or not {"queries"} <= set(values) <= {"queries", "topk", "return_scores"}:
        return False
    queries, k = values["queries"], values.get("topk")
    return (
        type(queries) is list
        and len(queries) <= 4
        and all(type(query) is str and len(query) <= 6 for query in queries)
        and not any("\ud800" <= character < "\ue000" for query in queries for character in query)
        and (k is None or (type(k) is int and 1 <= k <= 10))
        and type(values.get("return_scores", False)) is bool
        and len(queries) * (3 if k is None else k) <= 20
    )


@given(REQUEST | JSON)
def test_a_body_is_a_request_or_a_sentence(values: Any) -> None:
    body = json.dumps(values)
    if is_valid(values):
        k = values.get("topk")
        expected = RetrieveRequest(values["queries"], 3 if k is None else k, values.get("return_scores", False))
        assert read_request(body.encode(), LIMITS) == expected
        return
    with pytest.raises(RequestError) as caught:
        read_request(body.encode(), LIMITS)
    assert caught.value.status in (400, 422)
    assert SENTENCE.fullmatch(str(caught.value))


@given(st.binary(max_size=20))
def test_any_bytes_are_refused_with_a_sentence(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(body, LIMITS)
    assert SENTENCE.fullmatch(str(caught.value))


# Options


@pytest.mark.parametrize(
    "make",
    [
        *(lambda name=name: RequestLimits(**{name: 0}) for name in ("default_k", "max_queries", "max_body_bytes")),
        lambda: RequestLimits(max_waiting=-1),
        lambda: RequestLimits(default_k=5, max_k=4),
        lambda: RequestLimits(body_seconds=float("nan")),
        *(lambda name=name: ServerConfig("bm25", **{name: 0}) for name in ("workers", "threads", "grace_seconds")),
        *(lambda port=port: ServerConfig("bm25", port=port) for port in (-1, 65536)),
        *(lambda token=token: ServerConfig("bm25", token=token) for token in ("", "a b", "é", "a\n")),
    ],
)
def test_options_out_of_range(make: Callable[[], Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        make()


def test_who_can_reach_it() -> None:
    hosts = {"127.0.0.1": True, "127.0.0.9": True, "::1": True, "localhost": True, "0.0.0.0": False, "host": False}
    assert {host: ServerConfig("bm25", host=host).is_loopback for host in hosts} == hosts


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEARCH_GYM_TOKEN", raising=False)
    assert find_token(None, None) is None
    monkeypatch.setenv("SEARCH_GYM_TOKEN", "of-environment")
    file = tmp_path / "token"
    file.write_text("of-file\n")
    assert [find_token(None, None), find_token("own", None), find_token(None, file)] == [
        "of-environment",
        "own",
        "of-file",
    ]
    assert "own" not in repr(ServerConfig("bm25", token="own"))
    with pytest.raises(OptionError, match="expected a token in"):
        find_token(None, tmp_path / "none")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["no/such/index"], "expected the folder of an index, got no such folder"),
        (["{folder}", "--workers", "2"], "expected a complete index, got no index.json"),
        (["bm25", "--workers", "2"], "expected documents to search in, got none"),
        (["bm52"], "did you mean 'bm25'?"),
        (["bm25", "--port", "{port}"], "expected a free port"),
        (["bm25", "--port", "{port}", "--workers", "2"], "expected a free port"),
        (["bm25", "--host", "192.0.2.1", "--token", "x"], "192.0.2.1:0: Cannot assign requested address"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        free = [] if "--port" in args else ["--port", "0"]
        assert main(["serve", *(arg.format(folder=tmp_path, port=port) for arg in args), *free]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


# A server over documents


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", conformance.DOCUMENTS)
    limits = ["--body-seconds", "1", "--max-body-bytes", "2000000"]
    with serve("bm25", "--corpus", str(corpus), *limits) as process:
        yield process
        process.terminate()
        assert process.process is not None
        assert process.process.wait(120) == 0
        assert process.process.stderr is not None
        assert "Traceback" not in process.process.stderr.read()


def ask(server: ServerProcess, body: Any, **options: Any) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx2.post(f"{server.url}/retrieve", content=content, timeout=30, trust_env=False, **options)


def get(server: ServerProcess, path: str, **options: Any) -> httpx2.Response:
    return httpx2.get(f"{server.url}{path}", timeout=30, trust_env=False, **options)


def figures(server: ServerProcess, **options: Any) -> dict[str, float]:
    """Every figure of /metrics but the buckets."""
    lines = get(server, "/metrics", **options).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


QUERIES = ["Juden Plard born", "harbour", "zzzz", "écluse 運河"]


@pytest.mark.parametrize("k", [1, 3, 100, None])
@pytest.mark.parametrize("scored", [True, False, None])
def test_the_protocol_is_that_of_search_r1(server: ServerProcess, k: int | None, scored: bool | None) -> None:
    found = retrievers.load("bm25", conformance.DOCUMENTS).search(QUERIES, k or 3)
    items = [[{"id": d.doc_id, "contents": format_contents(d)} for d in documents] for documents in found]
    if scored:
        items = [
            [{"document": item, "score": d.score} for item, d in zip(one, documents, strict=True)]
            for one, documents in zip(items, found, strict=True)
        ]
    request = {"queries": QUERIES, "topk": k}
    response = ask(server, request if scored is None else {**request, "return_scores": scored})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"result": items}


def test_no_queries_have_no_documents(server: ServerProcess) -> None:
    assert ask(server, {"queries": []}).json() == {"result": []}


def body(**values: Any) -> bytes:
    return json.dumps({"queries": ["a"], **values}).encode()


REFUSED = {
    "nothing": (b"", 400),
    "no JSON": (b"queries=a", 400),
    "half an object": (b'{"queries": [', 400),
    "not UTF-8": (b'{"queries": ["\xff"]}', 400),
    "UTF-16": ('{"queries": ["a"]}'.encode("utf-16"), 400),
    "a byte order mark": ('{"queries": ["a"]}'.encode("utf-8-sig"), 400),
    "NaN": (body(topk=float("nan")), 400),
    "a number too long": (b'{"queries": ["a"], "topk": ' + b"9" * 10_000 + b"}", 400),
    "a deep nest": (b'{"queries": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400),
    "a field twice": (b'{"queries": ["a"], "queries": ["b"]}', 400),
    "a list": (b'["a"]', 422),
    "a string": (b'"a"', 422),
    "no queries": (b"{}", 422),
    "an unknown field": (body(top_k=3), 422),
    "a query that is no list": (body(queries="a"), 422),
    "a query that is a number": (body(queries=["a", 7]), 422),
    "a query that is null": (body(queries=[None]), 422),
    "a lone surrogate": (body(queries=["\ud800"]), 422),
    "10,000 queries": (body(queries=["a"] * 10_000), 422),
    "a query of 1 MB": (body(queries=["a" * 1_000_000]), 422),
    "too many documents": (body(queries=["a"] * 1001, topk=100), 422),
    **{f"topk {k!r}": (body(topk=k), 422) for k in (0, -1, 101, 10**30, 3.0, "3", True, [3])},
    **{f"return_scores {value!r}": (body(return_scores=value), 422) for value in (None, 1, "true")},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused_with_a_sentence(server: ServerProcess, name: str) -> None:
    content, status = REFUSED[name]
    response = ask(server, content)
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    assert SENTENCE.fullmatch(response.json()["error"])
    assert len(response.content) < 500


def test_large_bodies_are_refused_before_they_are_held(server: ServerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 100_000] * 300

    for content in (b"x" * 30_000_000, chunks()):
        response = httpx2.post(f"{server.url}/retrieve", content=content, timeout=30, trust_env=False)
        assert response.status_code == 413
        assert "at most 2000000 bytes" in response.json()["error"]


def raw(server: ServerProcess, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that comes back, until the server hangs up, on a connection on which ``parts`` are sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        if not pause:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(10_000), b""))


def test_a_body_that_never_arrives_is_given_up(server: ServerProcess) -> None:
    head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    answer = raw(server, head, b'{"queries"', pause=0.1)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"got 10 bytes" in answer


def test_what_is_no_http_is_refused(server: ServerProcess) -> None:
    assert raw(server, b"\x16\x03\x01\x02\x00 hello\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_other_paths_methods_and_encodings(server: ServerProcess) -> None:
    assert get(server, "/").status_code == 404
    wrong = get(server, "/retrieve")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    packed = ask(server, b"x", headers={"Content-Encoding": "gzip"})
    assert packed.status_code == 415
    for response in (get(server, "/" + "x" * 300), wrong, packed):
        assert SENTENCE.fullmatch(response.json()["error"])
        assert len(response.content) < 300


def test_health_and_metrics(server: ServerProcess) -> None:
    health = get(server, "/health").json()
    assert (health["status"], health["retriever"], health["documents"]) == ("ready", "bm25", len(conformance.DOCUMENTS))
    before = figures(server)
    ask(server, {"queries": ["harbour", "Kanor"], "topk": 1})
    ask(server, {"queries": 1})
    after = figures(server)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    assert grown['search_gym_requests_total{status="200"}'] == 1
    assert grown['search_gym_requests_total{status="422"}'] == 1
    assert grown["search_gym_queries_total"] == grown["search_gym_documents_total"] == 2
    assert grown["search_gym_search_seconds_count"] == grown["search_gym_request_seconds_count"] == 1
    assert after["search_gym_workers"] == 1
    assert after["search_gym_waiting_requests"] == after["search_gym_running_requests"] == 0


# Troubles


@pytest.mark.parametrize(
    ("queries", "status", "words"),
    [
        (["fail"], 503, "the disk is gone"),
        (["fail in part", "a"], 503, "1 of 2 queries failed"),
        (["too few", "a"], 503, "expected 2 lists of documents from the retriever, got 1"),
        (["no score"], 503, "expected finite scores from the retriever, got nan"),
        (["crash"], 500, "got ZeroDivisionError; do: look into the server's log"),
    ],
)
def test_a_retriever_that_fails(troubled: ServerProcess, queries: list[str], status: int, words: str) -> None:
    response = ask(troubled, {"queries": queries, "return_scores": True})
    assert response.status_code == status
    assert words in response.json()["error"]
    assert "secret" not in response.text


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "queries"


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: while it has a file with the name of a query, the search for that waits."""
    return tmp_path_factory.mktemp("hold")


@pytest.fixture(scope="module")
def troubled(log: Path, hold: Path) -> Iterator[ServerProcess]:
    """A server that lets two requests wait."""
    spec = f"tests.retrieval_servers:troubled(log={log}, hold={hold})"
    with serve(spec, "--max-waiting", "2") as process:
        yield process


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_more_than_may_wait_are_refused_at_once_and_health_answers(troubled: ServerProcess, hold: Path) -> None:
    def load() -> tuple[float, float]:
        found = figures(troubled)
        return found["search_gym_running_requests"], found["search_gym_waiting_requests"]

    (hold / "first").touch()
    with ThreadPoolExecutor(3) as executor:
        first = executor.submit(ask, troubled, {"queries": ["first"]})
        wait_for(lambda: load() == (1, 0))
        others = [executor.submit(ask, troubled, {"queries": [str(i)]}) for i in range(2)]
        wait_for(lambda: load() == (1, 2))
        refused = ask(troubled, {"queries": ["one too many"]})
        assert not first.done()
        assert get(troubled, "/health").status_code == 200
        assert not others[-1].done()
        (hold / "first").unlink()
        assert [future.result().status_code for future in (first, *others)] == [200] * 3
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["Retry-After"]) <= 30
    assert "got 2 that already wait" in refused.json()["error"]
    wait_for(lambda: load() == (0, 0))


def test_nobody_searches_for_a_client_that_has_left(troubled: ServerProcess, log: Path, hold: Path) -> None:
    before = figures(troubled)["search_gym_abandoned_requests_total"]
    content = json.dumps({"queries": ["left alone"]}).encode()
    head = b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content)
    (hold / "stays").touch()
    with ThreadPoolExecutor(1) as executor:
        first = executor.submit(ask, troubled, {"queries": ["stays"]})
        wait_for(lambda: figures(troubled)["search_gym_running_requests"] == 1)
        with socket.create_connection(("127.0.0.1", troubled.port)) as connection:
            connection.sendall(head + content)
            wait_for(lambda: figures(troubled)["search_gym_waiting_requests"] == 1)
        wait_for(lambda: figures(troubled)["search_gym_abandoned_requests_total"] == before + 1)
        (hold / "stays").unlink()
        assert first.result().status_code == 200
    assert ask(troubled, {"queries": ["later"]}).status_code == 200
    asked = log.read_text().splitlines()
    assert "left alone" not in asked
    assert asked[-2:] == ["stays", "later"]


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_several_workers_share_a_port_a_token_and_their_metrics_and_are_replaced(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer s3cret"}
    spec = f"tests.retrieval_servers:troubled(hold={tmp_path})"
    with serve(spec, "--workers", "2", "--token", "s3cret") as server:
        assert server.process is not None
        for wrong in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic s3cret"}):
            response = ask(server, {"queries": ["a"]}, headers=wrong)
            assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert get(server, "/metrics", headers=wrong).status_code == 401
            assert get(server, "/health", headers=wrong).json() == {"status": "ready"}
        assert get(server, "/health", headers=headers).json()["retriever"] == spec

        def answered() -> float:
            return figures(server, headers=headers)['search_gym_requests_total{status="200"}']

        with ThreadPoolExecutor(12) as executor:
            list(executor.map(lambda i: ask(server, {"queries": [str(i)]}, headers=headers), range(12)))
        assert answered() == 12

        def workers() -> list[int]:
            names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(server.process.pid)}
            return [pid for pid, name in names.items() if b"spawn_main" in name]

        first, second = workers()
        os.kill(first, signal.SIGKILL)
        assert server.process.stdout is not None
        assert f"worker {first} ended with exit code -9" in server.process.stdout.readline()
        assert len(workers()) == 2
        assert second in workers()
        assert answered() == 12
        assert figures(server, headers=headers)["search_gym_workers"] == 2

        (tmp_path / "last").touch()
        with ThreadPoolExecutor(1) as executor:
            last = executor.submit(ask, server, {"queries": ["last"]}, headers=headers)
            wait_for(lambda: figures(server, headers=headers)["search_gym_running_requests"] == 1)
            server.terminate()
            (tmp_path / "last").unlink()
            assert last.result().status_code == 200
        assert server.process.wait(120) == 0


def listens(server: ServerProcess) -> bool:
    try:
        get(server, "/health")
    except httpx2.TransportError:
        return False
    return True


def test_a_signal_ends_it_when_its_work_is_done(tmp_path: Path) -> None:
    (tmp_path / "running").touch()
    spec = f"tests.retrieval_servers:troubled(log={tmp_path / 'log'}, hold={tmp_path})"
    with serve(spec) as server, ThreadPoolExecutor(2) as executor:
        assert server.process is not None
        first = executor.submit(ask, server, {"queries": ["running"]})
        wait_for(lambda: figures(server)["search_gym_running_requests"] == 1)
        second = executor.submit(ask, server, {"queries": ["waiting"]})
        wait_for(lambda: figures(server)["search_gym_waiting_requests"] == 1)
        server.terminate()
        wait_for(lambda: not listens(server))
        assert not second.done()
        (tmp_path / "running").unlink()
        assert [future.result().status_code for future in (first, second)] == [200, 200]
        assert server.process.wait(120) == 0
    assert (tmp_path / "log").read_text().split() == ["running", "waiting"]


def test_a_port_can_be_had_again_at_once() -> None:
    port = free_port()
    for _ in range(2):
        with serve("tests.retrieval_servers:troubled", port=port) as server:
            assert server.port == port
            assert ask(server, {"queries": ["a"]}).status_code == 200
            server.kill()
