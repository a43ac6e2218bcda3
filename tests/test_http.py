"""The client of retrieval servers: what it makes of answers, when it tries again, and when it gives up."""

from __future__ import annotations

import json
import math
import pickle
import random
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_server import Reply, ScriptedServer, as_json

from search_gym import retrievers
from search_gym.corpus import format_contents
from search_gym.errors import OptionError, PartialRetrievalError, RetrievalError
from search_gym.retrievers import Document
from search_gym.retrievers._breaker import CircuitBreaker
from search_gym.retrievers._http_answers import MalformedAnswerError, read_answer, to_unicode
from search_gym.retrievers.http import HttpOptions, HttpRetriever, _seconds_of

# Answers

TEXT = st.text(max_size=8)
DOCUMENT = st.builds(Document, TEXT.filter(bool), st.text("ab\"' ", max_size=5), TEXT)


def wire(document: Document, score: float | None) -> dict[str, Any]:
    """A document as Search-R1's servers write it."""
    item = {"id": document.doc_id, "contents": format_contents(document)}
    return item if score is None else {"document": item, "score": score}


def encode(lists: Any) -> bytes:
    return json.dumps({"result": lists}).encode()


@given(st.lists(st.lists(st.tuples(DOCUMENT, st.floats(-1e6, 1e6)), max_size=3), max_size=3), st.booleans())
def test_documents_come_back_as_they_were_written(lists: list[list[tuple[Document, float]]], scored: bool) -> None:
    sent = [sorted(one, key=lambda pair: -pair[1]) for one in lists]
    body = encode([[wire(d, score if scored else None) for d, score in one] for one in sent])
    for documents, found in zip(sent, read_answer(body, len(sent), 3), strict=True):
        assert [d.score for d in found] == [s if scored else 1 / (i + 1) for i, (_, s) in enumerate(documents)]
        for (document, _), other in zip(documents, found, strict=True):
            assert other.doc_id == document.doc_id
            assert other.text == document.text
            assert other.title == document.title


def test_titles_may_lack_their_quotes_and_documents_their_ids() -> None:
    items = [{"contents": "Emma\nby Austen", "url": "x"}, {"document": {"id": 7, "contents": '"Walden"\nby Thoreau'}}]
    ((first, second),) = read_answer(encode([items]), 1, 3)
    assert (first.title, first.text, first.score) == ("Emma", "by Austen", 1.0)
    assert second == Document("7", "Walden", "by Thoreau", 0.5)
    ((again, other),) = read_answer(encode([[items[0], {"contents": "Emma\nby another"}]]), 1, 3)
    assert first.doc_id == again.doc_id != other.doc_id


GOOD = wire(Document("d", "t", "x"), 1.0)
MALFORMED = {
    "nothing": (b"", "expected JSON"),
    "HTML": (b"<html>", "expected JSON"),
    "not UTF-8": (b'{"result": "\xff"}', "expected JSON"),
    "a deep nest": (b"[" * 200_000, "expected JSON"),
    "NaN": (b'{"result": [[{"document": {"id": "d", "contents": "x"}, "score": NaN}]]}', "expected JSON"),
    "infinite": (b'{"result": [[{"document": {"id": "d", "contents": "x"}, "score": 1e999}]]}', "finite number"),
    "a huge score": (encode([[wire(Document("d", "", ""), 10**400)]]), "finite number"),
    "a list": (b"[[]]", 'expected an object {"result"'),
    "no result": (b'{"results": [[]]}', 'expected an object {"result"'),
    "an error": (b'{"error": "loading"}', "got {'error': 'loading'}"),
    "too few": (encode([]), "expected 1 lists of documents, got 0"),
    "too many": (encode([[], []]), "expected 1 lists of documents, got 2"),
    "no list": (encode([{}]), "a list of documents for each query"),
    "more than k": (encode([[GOOD] * 4]), "expected at most 3 documents for a query, got 4"),
    "a document that is none": (encode([["x"]]), "documents that are objects"),
    "a document without contents": (encode([[{"document": {"id": "d"}, "score": 1.0}]]), "string as contents"),
    "contents that are none": (encode([[{"id": "d", "contents": ["x"]}]]), "string as contents"),
    "a document in a string": (encode([[{"document": "x", "score": 1.0}]]), "string as contents"),
    "an id that is none": (encode([[{"id": True, "contents": "x"}]]), "a string or an integer as id"),
    "a score that is none": (encode([[{**GOOD, "score": "high"}]]), "finite number as score, got 'high'"),
    "a score that is null": (encode([[{**GOOD, "score": None}]]), "finite number as score, got None"),
    "a score that is true": (encode([[{**GOOD, "score": True}]]), "finite number as score, got True"),
    "a missing score": (encode([[GOOD, GOOD["document"]]]), "for all documents of a query or for none, got 1"),
    "the worst first": (encode([[{**GOOD, "score": 0.5}, GOOD]]), "from the highest to the lowest"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_named(name: str) -> None:
    body, words = MALFORMED[name]
    with pytest.raises(MalformedAnswerError) as caught:
        read_answer(body, 1, 3)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["document", "score", "id", "contents"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(st.lists(JSON, max_size=3), max_size=2) | JSON)
def test_whatever_a_server_says_is_documents_or_an_error(value: Any) -> None:
    try:
        found = read_answer(encode(value), 1, 2)
    except MalformedAnswerError:
        return
    assert len(found) == 1
    for document in found[0]:
        assert math.isfinite(document.score)
        (document.doc_id + document.title + document.text).encode()


@given(st.text(st.characters(exclude_categories=[]), max_size=6))
def test_lone_surrogates_are_replaced_and_nothing_else(text: str) -> None:
    clean = to_unicode(text)
    clean.encode()
    assert clean == text or "\ufffd" in clean or any("\ud800" <= c < "\ue000" for c in text)
    assert to_unicode(clean) == clean
    assert to_unicode("a\ud800b") == "a\ufffdb"


# Requests

FAST = {"backoff": 0.001, "retries": 2, "timeout": 5.0}


def good(request: Any, number: int) -> Reply:
    """Each query's own text, with rank and number of the request nowhere in it."""
    k = request.body["topk"]
    found = [[wire(Document(q, f"{r}", q), -float(r)) for r in range(k)] for q in request.body["queries"]]
    return as_json({"result": found})


def connect(server: ScriptedServer, **options: Any) -> Any:
    return closing(retrievers.load("http", url=server.url, **{**FAST, **options}))


def expected(queries: list[str], k: int) -> list[list[Document]]:
    return [[Document(q, f"{r}", q, -float(r)) for r in range(k)] for q in queries]


def test_a_request_says_what_was_asked_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_GYM_TOKEN", "s3cret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with ScriptedServer(good) as server, connect(server) as retriever:
        assert retriever.search(["a\ud800", "é"], 2) == expected(["a\ufffd", "é"], 2)
        assert retriever.search([], 2) == []
        (request,) = server.requests
        assert request.path == "/v1/retrieve"
        assert request.body == {"queries": ["a\ufffd", "é"], "topk": 2, "return_scores": True}
        assert request.headers["Authorization"] == "Bearer s3cret"
        assert "s3cret" not in repr(retriever.options)


@settings(max_examples=20)
@given(st.lists(st.text("abc", max_size=2), max_size=9), st.integers(1, 4), st.integers(1, 4))
def test_batches_keep_the_order(queries: list[str], batch_size: int, concurrency: int) -> None:
    with ScriptedServer(good) as server:
        with connect(server, batch_size=batch_size, concurrency=concurrency) as retriever:
            assert retriever.search(queries, 2) == expected(queries, 2)
        assert len(server.requests) == math.ceil(len(queries) / batch_size)
        assert server.most_at_once <= concurrency
        assert sorted(q for r in server.requests for q in r.body["queries"]) == sorted(queries)


def test_batches_are_asked_for_at_the_same_time() -> None:
    barrier = threading.Barrier(3)

    def together(request: Any, number: int) -> Reply:
        barrier.wait(10)
        return good(request, number)

    with ScriptedServer(together) as server, connect(server, batch_size=1, concurrency=3) as retriever:
        assert retriever.search(["a", "b", "c"], 1) == expected(["a", "b", "c"], 1)


def test_connections_are_kept_and_many_threads_may_ask() -> None:
    with ScriptedServer(good) as server, connect(server) as retriever:
        found: dict[int, Any] = {}

        def ask(number: int) -> None:
            found[number] = retriever.search([str(number)], 1)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: expected([str(number)], 1) for number in range(12)}
        assert server.most_at_once <= retriever.options.concurrency


def test_a_part_that_failed_is_named_query_by_query() -> None:
    def respond(request: Any, number: int) -> Reply:
        return Reply(b"no", status=400) if "bad" in request.body["queries"] else good(request, number)

    with ScriptedServer(respond) as server, connect(server, batch_size=2) as retriever:
        with pytest.raises(PartialRetrievalError, match=r"2 of 5 queries failed.*status 400") as caught:
            retriever.search(["a", "b", "c", "bad", "d"], 1)
        results = caught.value.results
        assert [results[i] for i in (0, 1, 4)] == expected(["a", "b", "d"], 1)
        assert all(isinstance(results[i], RetrievalError) for i in (2, 3))
        with pytest.raises(RetrievalError) as whole:
            retriever.search(["bad", "bad", "bad"], 1)
        assert not isinstance(whole.value, PartialRetrievalError)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_asked_again(status: int) -> None:
    with ScriptedServer(lambda r, n: good(r, n) if n == 2 else Reply(b"", status=status)) as server:
        with connect(server) as retriever:
            assert retriever.search(["a"], 1) == expected(["a"], 1)
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "advice"),
    [(301, "speaks"), (400, "speaks"), (401, "SEARCH_GYM_TOKEN"), (404, "url"), (413, "batch_size"), (500, "is up")],
)
def test_what_stays_is_not_asked_again(status: int, advice: str) -> None:
    with ScriptedServer(lambda r, n: Reply(b"x" * 9999, status=status)) as server, connect(server) as retriever:
        with pytest.raises(RetrievalError, match=f"in 1 try.*status {status} .*do: .*{advice}") as caught:
            retriever.search(["a"], 1)
        assert len(str(caught.value)) < 800
        assert len(server.requests) == 1


def test_it_waits_as_long_as_the_server_asks_for() -> None:
    def respond(request: Any, number: int) -> Reply:
        return good(request, number) if number else Reply(b"", status=503, headers={"Retry-After": "1"})

    with ScriptedServer(respond) as server, connect(server, backoff=0.0) as retriever:
        retriever.search(["a"], 1)
        first, second = server.requests
        assert second.at - first.at >= 1.0


def test_retry_after_is_seconds_or_a_date() -> None:
    assert _seconds_of("7") == 7.0
    assert _seconds_of("100000") == 30.0
    assert [_seconds_of(text) for text in ("", "soon", "-3", "1.5", "²")] == [0.0] * 5
    in_ten = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    assert 5.0 < _seconds_of(in_ten) <= 10.0
    assert _seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_the_back_off_is_exponential_with_full_jitter() -> None:
    """Uniform between 0 and 0.5 * 2**n, at most 30: the mean of 4000 draws is within 5 % of half of that."""
    retriever = HttpRetriever(HttpOptions("http://127.0.0.1:9"))
    retriever._random = random.Random(0)
    for attempt, longest in ((0, 0.5), (3, 4.0), (5, 16.0), (6, 30.0), (40, 30.0)):
        pauses = [retriever._pause(attempt, 0.0) for _ in range(4000)]
        assert 0 <= min(pauses) < 0.01 * longest
        assert 0.99 * longest < max(pauses) <= longest
        assert sum(pauses) / 4000 == pytest.approx(longest / 2, rel=0.05)
    assert retriever._pause(0, 3.0) == 3.0


def test_the_global_random_numbers_are_left_alone() -> None:
    state = random.getstate()
    with ScriptedServer(lambda r, n: good(r, n) if n else Reply(b"", status=503)) as server, connect(server) as client:
        client.search(["a"], 1)
    assert random.getstate() == state


# The circuit breaker


class _Model:
    """A breaker written down as its rules."""

    def __init__(self, failures: int, seconds: int) -> None:
        self.failures, self.seconds = failures, seconds
        self.history: list[bool] = []
        self.open_until: int | None = None

    def may(self, now: int) -> bool:
        return self.open_until is None or now >= self.open_until

    def result(self, now: int, succeeded: bool) -> None:
        was_open = self.open_until is not None
        self.history.append(succeeded)
        if succeeded:
            self.history, self.open_until = [], None
        elif was_open or len(self.history) >= self.failures:
            self.open_until = now + self.seconds


@given(
    st.integers(1, 3), st.integers(0, 4), st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30)
)
def test_the_breaker_keeps_its_rules(failures: int, seconds: int, steps: list[tuple[int, bool]]) -> None:
    now = 0
    breaker, model = CircuitBreaker(failures, seconds, clock=lambda: now), _Model(failures, seconds)
    for pause, succeeded in steps:
        now += pause
        entered = breaker.enter()
        assert (entered is not None) == model.may(now)
        if entered is not None:
            assert (entered == "closed") == (model.open_until is None)
            breaker.leave(entered, succeeded=succeeded)
            model.result(now, succeeded)
        assert (breaker.state == "closed") == (model.open_until is None)
        assert breaker.seconds_left() == (0 if model.open_until is None else max(0, model.open_until - now))


def test_a_half_open_breaker_lets_one_through() -> None:
    now = 0.0
    breaker = CircuitBreaker(1, 10.0, clock=lambda: now)
    late = breaker.enter()
    first = breaker.enter()
    assert late == first == "closed"
    breaker.leave("closed", succeeded=False)
    assert breaker.enter() is None
    breaker.leave("closed", succeeded=True)  # the late one says nothing about now
    assert breaker.state == "open"
    now = 10.0
    assert breaker.enter() == "half-open"
    assert breaker.enter() is None
    breaker.leave("half-open", succeeded=True)
    assert breaker.enter() == "closed"


def test_what_keeps_failing_is_left_alone_until_it_answers() -> None:
    is_up = False

    def respond(request: Any, number: int) -> Reply:
        return good(request, number) if is_up else Reply(b"", status=503)

    with (
        ScriptedServer(respond) as server,
        connect(server, retries=1, breaker_failures=2, breaker_seconds=1000.0) as retriever,
    ):
        now = 0.0
        retriever.breaker = CircuitBreaker(2, 1000.0, clock=lambda: now)
        for _ in range(2):
            with pytest.raises(RetrievalError, match="status 503"):
                retriever.search(["a"], 1)
        assert len(server.requests) == 4
        with pytest.raises(RetrievalError, match=r"got 2 failures in a row.*do: check that the server is up"):
            retriever.search(["a"], 1)
        assert len(server.requests) == 4
        now += 1000.0
        with pytest.raises(RetrievalError, match="in 1 try"):  # a look, without retries
            retriever.search(["a"], 1)
        assert len(server.requests) == 5
        is_up = True
        now += 1000.0
        assert retriever.search(["a"], 1) == expected(["a"], 1)
        assert retriever.breaker.state == "closed"


def test_refused_requests_open_no_breaker() -> None:
    with ScriptedServer(lambda r, n: Reply(b"", status=422)) as server:
        with connect(server, breaker_failures=1) as retriever:
            for _ in range(3):
                with pytest.raises(RetrievalError, match="status 422"):
                    retriever.search(["a"], 1)
        assert len(server.requests) == 3


# Options


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:1", "http://h:1/retrieve"),
        ("http://h:1/", "http://h:1/retrieve"),
        ("https://h/wiki/", "https://h/wiki/retrieve"),
        ("http://h:1/retrieve", "http://h:1/retrieve"),
        ("http://[::1]:80/retrieve/", "http://[::1]:80/retrieve"),
    ],
)
def test_the_address(url: str, address: str) -> None:
    assert HttpOptions(url).address == address
    assert httpx2.URL(address).path.endswith("/retrieve")


@pytest.mark.parametrize(
    "options",
    [
        *({"url": url} for url in ("", "h:8000", "ftp://h", "http://", "http://h:x", "http://h:99999", 7, None)),
        *({"url": f"http://{rest}"} for rest in ("me:secret@h", "h?a=1", "h#a")),
        *({name: 0} for name in ("batch_size", "concurrency", "timeout", "breaker_failures")),
        *({name: -1} for name in ("retries", "backoff", "breaker_seconds")),
        {"batch_size": 2.5},
        {"timeout": float("nan")},
        {"token": "a\nb"},
        {"token": ""},
    ],
    ids=str,
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected") as caught:
        retrievers.load("http", **{"url": "http://h", **options})
    assert "secret" not in str(caught.value)


def test_it_can_be_described_by_text_and_pickled() -> None:
    with (
        ScriptedServer(good) as server,
        closing(retrievers.load(f"http(url={server.url}, retries=1)")) as retriever,
    ):
        assert isinstance(retriever, HttpRetriever)
        assert retriever.options.retries == 1
        retriever.search(["a"], 1)
        with closing(pickle.loads(pickle.dumps(retriever))) as other:
            assert other.options == retriever.options
            assert other.search(["a"], 1) == retriever.search(["a"], 1)
