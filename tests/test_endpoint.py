"""The endpoint's completer against a real HTTP server that refuses, stalls, breaks off and talks nonsense."""

from __future__ import annotations

import math
import socket
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import Reply, ScriptedServer, as_json, chat_reply, text_reply

from search_gym.completion import Completer, Completion, Prompt
from search_gym.endpoint import EndpointCompleter, EndpointConfig, EndpointError
from search_gym.endpoint_replies import chat_message, option_logprobs_of, without_repetition
from search_gym.errors import OptionError, SearchGymError

GOOD = chat_reply(" Paris")


def connect(server, *, temperature=0.0, seed=0, **options):
    options = {"timeout": 5.0, "retries": 2, "backoff": 0.01, **options}
    return closing(
        EndpointCompleter(EndpointConfig(server.url, "the-model", **options), temperature=temperature, seed=seed)
    )


def ask(completer, text="Who?", **options):
    return completer.complete([Prompt(text)], **{"max_tokens": 7, **options})[0]


def test_a_chat_request_says_what_was_asked_and_nothing_else(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ScriptedServer(lambda request, number: GOOD) as server, connect(server) as completer:
        assert isinstance(completer, Completer)
        assert ask(completer, stop=["\n"]) == Completion(" Paris", 3, "stop")
        (request,) = server.requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["Authorization"] == "Bearer sk-secret"
        assert request.body == {
            "model": "the-model",
            "messages": [{"role": "user", "content": "Who?"}],
            "temperature": 0.0,
            "max_tokens": 7,
            "stop": ["\n"],
        }
    with ScriptedServer(lambda request, number: GOOD) as server:
        with connect(server, temperature=0.7, seed=5) as completer:
            ask(completer)
        body = server.requests[0].body
        assert (body["temperature"], body["seed"]) == (0.7, 5)
        assert "stop" not in body


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_conversation_goes_on_from_all_of_its_parts(api):
    reply = text_reply("c") if api == "completions" else chat_reply("c")
    with ScriptedServer(lambda request, number: reply) as server, connect(server, api=api) as completer:
        found = completer.converse([("Q", "<search>a</search>", "docs")], stop=["</search>"], max_tokens=5)
        assert found == [Completion("c", 3, "stop")]
        (request,) = server.requests
        assert (request.body["stop"], request.body["max_tokens"]) == (["</search>"], 5)
        if api == "completions":
            assert request.body["prompt"] == "Q<search>a</search>docs"
        else:
            said = [(message["role"], message["content"]) for message in request.body["messages"]]
            assert said == [("user", "Q"), ("assistant", "<search>a</search>"), ("user", "docs")]
        with pytest.raises(OptionError, match="the user spoke last, got 2 parts"):
            completer.converse([("Q", "a")], max_tokens=5)


def test_the_plain_text_call_goes_on_from_message_and_reply(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with ScriptedServer(lambda request, number: text_reply(" Paris", finish_reason="length")) as server:
        with connect(server, api="completions") as completer:
            found = completer.complete([Prompt("Who?\n", "Answer:")], max_tokens=3)
        assert found == [Completion(" Paris", 3, "length")]
        (request,) = server.requests
        assert (request.path, request.body["prompt"]) == ("/v1/completions", "Who?\nAnswer:")
        assert "Authorization" not in request.headers


def test_a_chat_model_is_shown_how_its_reply_begins_and_may_repeat_it():
    prompt = Prompt("Who?\n", "Thought 1: x\nAction 1:")
    assert chat_message(prompt).startswith("Who?\n\n")
    assert chat_message(prompt).endswith("\nThought 1: x\nAction 1:")
    assert chat_message(Prompt("Who?\n")) == "Who?\n"
    with (
        ScriptedServer(lambda request, number: chat_reply("Action 1: Search[a]")) as server,
        connect(server) as completer,
    ):
        assert completer.complete([prompt], max_tokens=9)[0].text == " Search[a]"


@given(reply=st.text("ab: \n", max_size=8), text=st.text("ab: \n", max_size=8))
def test_only_a_repeated_last_line_is_taken_off(reply, text):
    found = without_repetition(text, reply)
    last = reply.split("\n")[-1].strip()
    assert found == text or (last and text.lstrip() == last + found)
    assert not last or without_repetition(f" {last}{text}", reply) == text


def test_a_server_that_ignores_or_keeps_the_stop_string_changes_nothing():
    reply = chat_reply(" Paris\nQuestion: more", finish_reason="length")
    with ScriptedServer(lambda request, number: reply) as server, connect(server) as completer:
        assert ask(completer, stop=["\nQuestion", "\n"]) == Completion(" Paris", 3, "stop")


def test_many_requests_at_once_keep_their_order():
    def echo(request, number):
        return Reply(**{**vars(chat_reply(request.text, num_tokens=int(request.text))), "delay": 0.05})

    with ScriptedServer(echo) as server, connect(server, concurrency=4) as completer:
        found = completer.complete([Prompt(str(i)) for i in range(20)], max_tokens=5)
        assert [completion.text for completion in found] == [str(i) for i in range(20)]
        assert [completion.num_tokens for completion in found] == list(range(20))
        assert server.most_at_once == 4


def html(status):
    return Reply(b"<html><h1>Bad gateway</h1></html>", status=status, headers={"Content-Type": "text/html"})


PASSING = {
    "500": Reply(b'{"error": {"message": "overloaded"}}', status=500),
    "429": Reply(b"slow down", status=429),
    "HTML": html(200),
    "HTML 502": html(502),
    "no choices": as_json({"choices": [], "usage": {"completion_tokens": 0}}),
    "an error with status 200": as_json({"error": "model is loading"}),
    "a list": as_json([1, 2]),
    "nonsense": Reply(b'{"choices": [{]'),
    "invalid UTF-8": Reply(b'"\xff\xfe"'),
    "nothing": Reply(b""),
    "a deep nest": Reply(b"[" * 200_000),
    "a truncated body": Reply(GOOD.body, cut=25),
    "a connection that is closed": Reply(GOOD.body, cut=0),
    "a text that is none": chat_reply(None),
    "a choice that is none": as_json({"choices": [None], "usage": {"completion_tokens": 1}}),
    "a message that is none": as_json({"choices": [{"message": "hi"}], "usage": {"completion_tokens": 1}}),
    "no usage": as_json({"choices": [{"message": {"content": "hi"}}]}),
    "a count that is none": chat_reply("hi", num_tokens=True),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_outlasted(fault):
    with (
        ScriptedServer(lambda request, number: GOOD if number >= 2 else PASSING[fault]) as server,
        connect(server) as completer,
    ):
        assert ask(completer).text == " Paris"
        assert len(server.requests) == 3


SAID = {
    "500": "status 500 in 3 tries.*overloaded.*do: check that the server is up",
    "429": "status 429 in 3 tries.*slow down.*do: lower concurrency",
    "HTML": "status 200 in 3 tries.*other than JSON: '<html><h1>Bad gateway",
    "no choices": "no choice in .*.choices",
    "an error with status 200": "no 'choices' in .*model is loading",
    "nonsense": "other than JSON: '{\"choices",
    "a truncated body": 'status 200 in 3 tries.*RemoteProtocolError.*after \'{"choices"',
    "a connection that is closed": "in 3 tries.*RemoteProtocolError",
    "a text that is none": "no text in a choice",
    "no usage": "no 'usage'",
    "a count that is none": "no 'completion_tokens'",
}


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_that_stays_is_named_with_address_status_and_reply(fault):
    with ScriptedServer(lambda request, number: PASSING[fault]) as server, connect(server) as completer:
        with pytest.raises(EndpointError, match=f"(?s){SAID[fault]}") as caught:
            ask(completer)
        assert f"from {server.url}/chat/completions" in str(caught.value)
        assert len(server.requests) == 3
        assert isinstance(caught.value, SearchGymError)


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "check that the server"),
        (401, "environment variable MY_KEY"),
        (403, "MY_KEY"),
        (404, "the model's name"),
        (301, "check that the server"),
    ],
)
def test_a_refusal_is_not_asked_again_and_the_key_stays_secret(status, advice, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret\n")
    with (
        ScriptedServer(lambda request, number: Reply(b"no such thing", status=status)) as server,
        connect(server, api_key_env="MY_KEY") as completer,
    ):
        with pytest.raises(EndpointError, match=f"status {status} in 1 try.*'no such thing'; do: .*{advice}") as caught:
            ask(completer)
        assert server.requests[0].headers["Authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in str(caught.value)
        assert len(server.requests) == 1


def test_a_long_reply_is_quoted_from_its_start():
    with ScriptedServer(lambda r, n: Reply(b"x" * 100_000, status=400)) as server, connect(server) as completer:
        with pytest.raises(EndpointError) as caught:
            ask(completer)
        assert "x" * 200 in str(caught.value)
        assert "x" * 201 not in str(caught.value)


@pytest.mark.parametrize("slow", [Reply(GOOD.body, delay=1.0), Reply(GOOD.body, dribble=0.02)])
def test_a_reply_may_take_so_long_as_a_whole(slow):
    """The dribbled body never pauses for the timeout, but takes 3 s in all."""
    assert len(slow.body) * 0.02 > 2
    with ScriptedServer(lambda request, number: slow) as server:
        with (
            connect(server, timeout=0.2, retries=1) as completer,
            pytest.raises(EndpointError, match=r"in 2 tries.*(ReadTimeout|no whole reply within 0\.2 s)"),
        ):
            ask(completer)
        assert len(server.requests) == 2


def test_nobody_listens():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        config = EndpointConfig(f"http://127.0.0.1:{reserved.getsockname()[1]}", "m", retries=1, backoff=0.01)
        with (
            closing(EndpointCompleter(config)) as completer,
            pytest.raises(EndpointError, match=r"got no reply in 2 tries.*ConnectError"),
        ):
            ask(completer)


def test_it_waits_longer_each_time_and_as_long_as_the_server_asks_for():
    def respond(request, number):
        header = {"Retry-After": "1"} if number == 2 else {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}
        return GOOD if number == 3 else Reply(b"", status=429, headers=header)

    with ScriptedServer(respond) as server, connect(server, retries=3, backoff=0.1) as completer:
        ask(completer)
        first, second, third = (b.at - a.at for a, b in zip(server.requests, server.requests[1:], strict=False))
    assert first >= 0.1
    assert second >= 0.2
    assert third >= 1.0


def test_one_refusal_ends_the_others_waiting_and_what_has_not_begun():
    def respond(request, number):
        return Reply(b"", status=400) if request.text == "bad" else Reply(b"", status=503)

    with ScriptedServer(respond) as server, connect(server, concurrency=2, retries=5, backoff=30.0) as completer:
        with pytest.raises(EndpointError, match="status 400"):
            completer.complete([Prompt("bad"), *(Prompt(str(i)) for i in range(20))], max_tokens=1)
        assert len(server.requests) < 10
    with ScriptedServer(lambda r, n: GOOD) as server, connect(server) as completer:
        assert len(completer.complete([Prompt("a"), Prompt("b")], max_tokens=1)) == 2


def first_token(api, found):
    if api == "chat":
        rows = [{"token": token, "logprob": logprob} for token, logprob in found]
        return chat_reply("x", logprobs={"content": [{"token": "x", "logprob": 0.0, "top_logprobs": rows}]})
    return text_reply("x", logprobs={"tokens": ["x"], "token_logprobs": [0.0], "top_logprobs": [dict(found)]})


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_options_are_read_from_the_first_token(api):
    found = [("A", math.log(0.5)), (" A", math.log(0.25)), ("B", math.log(0.125)), ("\n", math.log(0.01)), ("Z", -1)]
    with (
        ScriptedServer(lambda request, number: first_token(api, found)) as server,
        connect(server, api=api) as completer,
    ):
        ((a, b, c),) = completer.option_logprobs([Prompt("A or B?", "Choice:")], [" A", " B", " C"])
        assert (math.exp(a), math.exp(b), c) == (pytest.approx(0.75), pytest.approx(0.125), -math.inf)
        body = server.requests[0].body
        assert body["max_tokens"] == 1
        assert (body["logprobs"], body.get("top_logprobs")) == ((True, 20) if api == "chat" else (20, None))


def test_a_token_that_begins_two_options_speaks_for_neither():
    found = {"ye": -1.0, "yes": -2.0, "yesterday": -3.0, "y": -4.0, "": 0.0}
    assert option_logprobs_of(found, ["yes", "yeast"]) == (pytest.approx(-2.0), -math.inf)
    assert option_logprobs_of(found, ["yes", "no"])[0] == pytest.approx(
        math.log(sum(math.exp(-x) for x in (1.0, 2.0, 4.0)))
    )
    with pytest.raises(EndpointError, match=r"one of \('no', 'never'\) among the endpoint's.*got \['', 'y"):
        option_logprobs_of(found, ["no", "never"])


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_log_probabilities_of_a_completion_are_averaged(api):
    chat = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}
    reply = (
        chat_reply("ab", logprobs=chat)
        if api == "chat"
        else text_reply("ab", logprobs={"token_logprobs": [-1.0, -2.0]})
    )
    with ScriptedServer(lambda request, number: reply) as server, connect(server, api=api) as completer:
        assert ask(completer, logprobs=True).mean_logprob == pytest.approx(-1.5)
        assert server.requests[0].body["logprobs"] is (True if api == "chat" else 1)
        assert ask(completer).mean_logprob is None
        assert "logprobs" not in server.requests[1].body


@pytest.mark.parametrize(
    "given", [None, {}, {"content": []}, {"content": [{"token": "a"}]}, {"token_logprobs": [None]}, 1]
)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_server_without_log_probabilities_is_told_apart_from_one_that_fails(api, given):
    reply = chat_reply("a", logprobs=given) if api == "chat" else text_reply("a", logprobs=given)
    with ScriptedServer(lambda request, number: reply) as server, connect(server, api=api) as completer:
        for call in (
            lambda: ask(completer, logprobs=True),
            lambda: completer.option_logprobs([Prompt("a")], ["A", "B"]),
        ):
            with pytest.raises(EndpointError, match="expected log-probabilities, got none"):
                call()
        assert len(server.requests) == 2


def test_what_cannot_be_asked():
    for url in ("localhost:8000", "ftp://host/v1", "http://", "nonsense"):
        with pytest.raises(OptionError, match="an endpoint like http://host:8000/v1"):
            EndpointConfig(url, "m")
    with pytest.raises(OptionError, match="do: name the model"):
        EndpointConfig("http://host/v1")
    for wrong in ({"timeout": 0.0}, {"retries": -1}, {"backoff": -1.0}, {"concurrency": 0}):
        with pytest.raises(OptionError, match="timeout > 0, retries >= 0"):
            EndpointConfig("http://host/v1", "m", **wrong)
    with pytest.raises(OptionError, match="expected an endpoint and temperature >= 0"):
        EndpointCompleter(EndpointConfig())
    with closing(EndpointCompleter(EndpointConfig("http://host/v1", "m"))) as completer:
        with pytest.raises(OptionError, match="max_tokens >= 1"):
            ask(completer, max_tokens=0)
        with pytest.raises(
            OptionError, match=r"without control tokens for an endpoint, got .*Yes.*; do: run the model"
        ):
            completer.complete([Prompt("a", chat=False, control=("[Yes]",))], max_tokens=1)


def test_a_key_that_cannot_be_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u2026")
    with pytest.raises(OptionError, match=r"printable ASCII in the .*variable OPENAI_API_KEY") as caught:
        EndpointCompleter(EndpointConfig("http://host/v1", "m"))
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:80", "http://h:80/v1"),
        ("http://h:80/", "http://h:80/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/completions", "http://h/v1"),
    ],
)
def test_addresses(url, base):
    assert EndpointConfig(url, "m").base_url == base


def test_a_reasoning_model_that_never_came_to_its_reply_said_nothing():
    with ScriptedServer(lambda r, n: chat_reply(None, finish_reason="length")) as server, connect(server) as completer:
        assert ask(completer) == Completion("", 3, "length")
