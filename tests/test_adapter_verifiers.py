"""verifiers: its taskset loader, its runner and its own agent process, with a real HTTP server as the model."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit

import gymnasium as gym
import pytest
from adapter_episodes import ENV_ID, OPTIONS, make_env
from doc_pages import blocks, player
from scripted_server import Reply, ScriptedServer

pytest.importorskip("verifiers", reason="needs verifiers: make test-adapters")

import verifiers.v1 as vf
from verifiers.v1.clients import EvalClientConfig, ModelContext
from verifiers.v1.utils.loaders import load_environment, resolve_env_config

from search_gym import tinywiki
from search_gym.wrappers import TextTurns

ROOT = Path(__file__).parents[1]
MODULE = """
from search_gym.adapters.verifiers import SearchQAEnv, SearchTaskset

__all__ = ["SearchQAEnv", "SearchTaskset"]
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    (tmp_path / "search_qa.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda **more: load_environment(
        resolve_env_config({"taskset": {"id": "search-qa", "env_id": ENV_ID, "options": OPTIONS}, **more})
    )
    sys.modules.pop("search_qa", None)


def reply(text):
    """What verifiers' agent asks for: a stream of server-sent events."""
    common = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    delta = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    events = [
        {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**common, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**common, "choices": [], "usage": usage},
    ]
    body = "".join(f"data: {line}\n\n" for line in [*map(json.dumps, events), "[DONE]"])
    return Reply(body.encode(), headers={"Content-Type": "text/event-stream"})


def turns_of(question):
    """A search whose closing tag the server has cut off as a stop string, an invalid turn, the right answer."""
    return (f"<search>{question.text}", "no tags", f"<answer>{question.answers[0]}</answer>")


def test_the_taskset_has_a_task_for_each_question(environment):
    env = environment()
    questions = make_env().task.questions
    tasks = list(env.taskset)
    assert isinstance(env, vf.Env)
    assert [task.data.id for task in tasks] == [question.question_id for question in questions]
    assert tasks[3].data.prompt == tinywiki.prompt(questions[3].text)
    assert tasks[3].data.question_index == 3


def test_episodes_are_those_of_the_environment_and_run_side_by_side(environment):
    env = environment()
    ours = TextTurns(make_env())
    questions = {tinywiki.prompt(question.text): question for question in ours.unwrapped.task.questions[:2]}

    def respond(request, number):
        messages = [message for message in request.body["messages"] if message["role"] != "system"]
        question = next(found for prompt, found in questions.items() if prompt in str(messages[0]["content"]))
        return reply(turns_of(question)[len(messages) // 2])

    async def main(url):
        client = EvalClientConfig(base_url=url, api_key_var="NO_KEY")
        context = ModelContext(model="m", client=client)
        async with env.serving():
            tasks = list(env.taskset.take(2))
            return await asyncio.gather(*(env.run_episode(task, context) for task in tasks))

    with ScriptedServer(respond) as server:
        episodes = asyncio.run(main(server.url))
    for index, episode in enumerate(episodes):
        assert episode.ok, episode.errors
        (trace,) = episode.traces
        assert trace.reward == 1.0
        assert trace.metrics["num_searches"] == 1.0
        assert (trace.metrics["num_turns"], trace.metrics["truncated"]) == (3.0, 0.0)
        ours.reset(options={"question_index": index})
        question = ours.unwrapped.task.questions[index]
        search, invalid, _ = turns_of(question)
        expected = [ours.step(search + "</search>")[0], ours.step(invalid)[0]]
        said = [node.message.content for node in trace.nodes if node.message.role == "user"]
        assert [str(text) for text in said[1:]] == expected
        assert json.loads(episode.model_dump_json())["traces"]


def test_the_command_of_the_page_plays(tmp_path):
    page = ROOT / "docs" / "adapters" / "verifiers.md"
    questions = gym.make("search_gym/TinyWiki-v0").unwrapped.task.questions

    def respond(request, number):
        said = [str(message["content"]) for message in request.body["messages"] if message["role"] != "system"]
        question = next(question for question in questions if tinywiki.prompt(question.text) in said[0])
        return reply(turns_of(question)[len(said) // 2])

    with ScriptedServer(respond) as server, player(tmp_path, page.name) as playing:
        playing.port = str(urlsplit(server.url).port)
        for block in blocks(page.read_text(encoding="utf-8")):
            playing.play(block)
    (file,) = tmp_path.glob("outputs/*/traces.jsonl")
    episodes = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    traces = [trace for episode in episodes for trace in episode["traces"]]
    assert [trace["rewards"]["reward"]["score"] for trace in traces] == [1.0, 1.0]
    assert [trace["metrics"]["num_searches"] for trace in traces] == [1.0, 1.0]
