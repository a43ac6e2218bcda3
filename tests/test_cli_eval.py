"""``search-gym eval`` against a real HTTP server that plays a model, faults included."""

from __future__ import annotations

import json

import pytest
from scripted_server import Reply, ScriptedServer, chat_reply, text_reply

from search_gym import ByteCodec, Document, Question, questions
from search_gym.cli import main
from search_gym.completion import Completion
from search_gym.conversations import describe, play
from search_gym.errors import OptionError
from search_gym.estimates import METRICS
from search_gym.limits import Limits
from search_gym.tags import INVALID_ACTION, search_r1_prompt
from search_gym.task import Task

NUM_QUESTIONS = 6
ASKED = {search_r1_prompt(q.text): q for q in questions.load("tinywiki", "test")[:NUM_QUESTIONS]}


def turns_of(question):
    """Searches, says nothing that counts, answers: right, but for questions whose id ends in an odd digit."""
    answer = question.answers[0] if list(ASKED.values()).index(question) % 2 == 0 else "nobody"
    return (f"<think>hm</think><search>{question.text}</search>", "well", f"<answer>{answer}</answer>")


def said_so_far(request):
    """The question and the number of turns that the model has taken."""
    if "messages" in request.body:
        parts = [message["content"] for message in request.body["messages"]]
        return ASKED[parts[0]], len(parts) // 2
    prompt, question = next((p, q) for p, q in ASKED.items() if request.body["prompt"].startswith(p))
    rest = request.body["prompt"][len(prompt) :]
    return question, ("<information>" in rest) + (INVALID_ACTION in rest)


def respond(request, number):
    question, turn = said_so_far(request)
    text = turns_of(question)[turn]
    for stop in request.body["stop"]:
        text = text.partition(stop)[0]
    return chat_reply(text) if "messages" in request.body else text_reply(text)


def run(server, tmp_path, *more):
    common = ["--endpoint", server.url, "--model", "m", "--limit", str(NUM_QUESTIONS), "--backoff", "0.01"]
    return main(["eval", *common, "--run-dir", str(tmp_path / "run"), *more])


def rows_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/transcripts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_every_question_is_played_once_and_counted(api, tmp_path, capsys):
    with ScriptedServer(respond) as server:
        assert run(server, tmp_path, "--api", api, "--concurrency", "4") == 0
        assert len(server.requests) == 3 * NUM_QUESTIONS
        assert 1 < server.most_at_once <= 4
        assert {tuple(request.body["stop"]) for request in server.requests} == {("</search>", "</answer>")}
        assert {request.body["max_tokens"] for request in server.requests} == {500}
    rows = rows_of(tmp_path)
    assert [row["question"] for row in rows] == [question.text for question in ASKED.values()]
    for row, (prompt, question) in zip(rows, ASKED.items(), strict=True):
        search, invalid, answer = turns_of(question)
        assert row["prompt"] == prompt
        assert [turn["text"] for turn in row["turns"]] == [search, invalid, answer]
        assert [turn["event"] for turn in row["turns"]] == ["search", "invalid", "answer"]
        assert row["turns"][0]["observation"].startswith("\n\n<information>Doc 1(Title:")
        assert row["turns"][1]["observation"] == INVALID_ACTION
        assert row["turns"][2]["observation"] == ""
        assert row["kind"] == question.metadata["kind"]
        assert (row["sampled_tokens"], row["searches"], row["truncated"]) == (9.0, 1.0, 0.0)
        assert row["valid_turns"] == pytest.approx(2 / 3)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["num_questions"] == NUM_QUESTIONS
    assert summary["config"]["api"] == api
    assert summary["metrics"]["all"]["em"]["mean"] == 0.5
    assert set(summary["metrics"]) == {"all", *(row["kind"] for row in rows)}
    printed = capsys.readouterr().out
    assert all(metric in printed for metric in METRICS)
    assert "0.500 [" in printed


def test_a_run_whose_server_fails_for_good_goes_on_and_asks_nothing_twice(tmp_path, capsys):
    bad = list(ASKED.values())[3]

    def refuse(request, number):
        return Reply(b"no such thing", status=400) if said_so_far(request)[0] == bad else respond(request, number)

    with ScriptedServer(refuse) as server:
        assert run(server, tmp_path, "--concurrency", "1") == 2
        assert "status 400 in 1 try" in capsys.readouterr().err
        first = rows_of(tmp_path)
        assert [row["question_index"] for row in first] == [0, 1, 2]
        assert not (tmp_path / "run/summary.json").exists()
    with (tmp_path / "run/transcripts.jsonl").open("a") as file:
        file.write('{"question_index": 3, "half')
    with ScriptedServer(respond) as server:
        assert run(server, tmp_path, "--concurrency", "1", "--resume", "--temperature", "0.5") == 2
        error = capsys.readouterr().err
        assert "['endpoint', 'temperature']" in error
        assert "do: repeat them" in error
        config = tmp_path / "run/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "endpoint": server.url}))
        assert run(server, tmp_path, "--concurrency", "3", "--resume") == 0
        assert len(server.requests) == 3 * (NUM_QUESTIONS - 3)
    assert rows_of(tmp_path)[:3] == first
    assert [row["question_index"] for row in rows_of(tmp_path)] == list(range(NUM_QUESTIONS))
    assert json.loads((tmp_path / "run/summary.json").read_text())["metrics"]["all"]["em"]["mean"] == 0.5


def test_a_fault_that_passes_is_outlasted(tmp_path):
    def stumble(request, number):
        return Reply(b"busy", status=503) if number % 3 == 0 else respond(request, number)

    with ScriptedServer(stumble) as server:
        assert run(server, tmp_path, "--limit", "2", "--concurrency", "1") == 0
    assert [row["em"] for row in rows_of(tmp_path)] == [1.0, 0.0]


def test_what_cannot_be_asked(tmp_path, capsys):
    for arguments, message in (
        (["--endpoint", "localhost:1", "--model", "m"], "an endpoint like http://"),
        (["--endpoint", "http://h/v1", "--model", "m", "--limit", "0"], "--limit of at least 1"),
        (["--endpoint", "http://h/v1", "--model", "m", "--questions", "nowhere"], "nowhere"),
    ):
        assert main(["eval", *arguments, "--run-dir", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


class Counting:
    def __init__(self):
        self.calls = []

    def search(self, queries, k):
        self.calls.append(list(queries))
        return [[Document(query, query, "text")] for query in queries]


def make_task(**limits):
    asked = [Question(f"q{i}", f"Who is {i}?", (str(i),)) for i in range(5)]
    return Task(asked, Counting(), ByteCodec(), prompt_fn=str, limits=Limits(**limits))


def test_open_conversations_search_together_and_slots_are_filled_again():
    task = make_task()

    def converse(conversations):
        return [
            Completion(f"<search>{parts[0]}" if len(parts) == 1 else f"<answer>{parts[0][7:-1]}", 1, "stop")
            for parts in conversations
        ]

    played = list(play(task, converse, [4, 2, 0], num_slots=2))
    assert [(one.question_index, one.reward, one.answer) for one in played] == [
        (4, 1.0, "4"),
        (2, 1.0, "2"),
        (0, 1.0, "0"),
    ]
    assert task.retriever.calls == [["Who is 4?", "Who is 2?"], ["Who is 0?"]]
    with pytest.raises(OptionError, match="num_slots >= 1"):
        next(play(task, converse, [0], num_slots=0))


def test_a_turn_that_is_too_long_is_shown_as_far_as_it_was_read():
    task = make_task(max_turn_tokens=12, max_turns=1)
    seen = []

    def converse(conversations):
        seen.extend(conversations)
        return [Completion("<search>far too long</search>", 9, "length") for _ in conversations]

    (one,) = play(task, converse, [1])
    assert [turn["event"] for turn in one.turns] == ["invalid", "invalid"]
    assert seen[1] == ("Who is 1?", "<search>far ", INVALID_ACTION)
    row = describe(one, label="x")
    assert (row["answer"], row["truncated"], row["end_reason"], row["reward"]) == (None, 1.0, "out_of_turns", 0.0)
    assert json.loads(json.dumps(row)) == row
