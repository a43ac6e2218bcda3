"""OpenEnv: a real server on this machine, its real client, and many sessions at a time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from adapter_episodes import CODEC, ENV_ID, OPTIONS, expect, make_env
from doc_pages import check

pytest.importorskip("openenv", reason="needs OpenEnv: make test-adapters")

from openenv.core import GenericEnvClient
from openenv.core.env_server import Environment

from search_gym.adapters._play import SharedTask
from search_gym.adapters.openenv import SearchAction, SearchClient, SearchEnvironment
from search_gym.errors import ActionError, OptionError

ROOT = Path(__file__).parents[1]
SERVER = f"""
import json, sys, uvicorn
from search_gym.adapters.openenv import make_app
app = make_app({ENV_ID!r}, json.loads({json.dumps(OPTIONS)!r}), max_concurrent_envs=8)
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("openenv") / "log"
    with log.open("wb") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=file, stderr=file, env=environment)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _answers(url):
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


def test_an_episode_over_the_wire_is_that_of_the_environment(url):
    expected = expect(3)
    with SearchClient(base_url=url).sync() as env:
        result = env.reset(question_index=3)
        assert result.observation.token_ids == expected.prompt
        assert result.observation.text == CODEC.decode(expected.prompt)
        assert result.metadata == {"question_id": expected.question_id, "question_index": 3}
        for turn, (ids, reward, terminated, truncated, info) in zip(expected.turns, expected.results, strict=True):
            result = env.step(SearchAction(token_ids=turn))
            assert result.observation.token_ids == ids.tolist()
            assert (result.observation.terminated, result.observation.truncated) == (terminated, truncated)
            assert (result.done, result.reward, result.metadata) == (terminated, reward, info)
        state = env.state()
    assert (state.token_ids, state.loss_mask, state.info_mask) == (
        expected.token_ids,
        expected.loss_mask,
        expected.info_mask,
    )
    assert (state.question_index, state.question_id, state.step_count) == (3, expected.question_id, 3)


def test_how_a_turn_is_cut_changes_nothing(url):
    expected, rng = expect(1), random.Random(0)
    with SearchClient(base_url=url).sync() as env:
        env.reset(question_index=1)
        for turn in expected.turns:
            while turn:
                size = rng.randint(1, 12)
                env.step(SearchAction(token_ids=turn[:size]))
                turn = turn[size:]
        assert env.state().token_ids == expected.token_ids
        assert env.state().loss_mask == expected.loss_mask


def test_sessions_play_side_by_side(url):
    expected = [expect(index) for index in range(6)]

    async def play(one):
        async with SearchClient(base_url=url) as env:
            await env.reset(question_index=one.index)
            for turn in one.turns:
                result = await env.step(SearchAction(token_ids=turn))
                await asyncio.sleep(0)  # lets the others have their turn
            state = await env.state()
            return result.reward, state.token_ids, state.loss_mask

    async def main():
        return await asyncio.gather(*map(play, expected))

    assert asyncio.run(main()) == [(1.0, one.token_ids, one.loss_mask) for one in expected]


def test_text_is_a_whole_turn_for_a_client_that_knows_no_ids(url):
    question = make_env().task.questions[0]
    with GenericEnvClient(base_url=url).sync() as env:
        first = env.reset(seed=5).observation["text"]
        assert env.reset(seed=5).observation["text"] == first
        assert question.text in env.reset(question_index=0).observation["text"]
        assert "<information>" in env.step({"text": f"<search>{question.text}</search>"}).observation["text"]
        assert "invalid" in env.step({"text": "no tags"}).observation["text"]
        result = env.step({"text": f"<answer>{question.answers[0]}</answer>"})
        assert (result.done, result.reward, result.observation["text"]) == (True, 1.0, "")


def test_a_wrong_action_is_refused_and_the_session_goes_on(url):
    expected = expect(2)
    with SearchClient(base_url=url).sync() as env:
        env.reset(question_index=2)
        for wrong in (SearchAction(), SearchAction(text="a", token_ids=[1]), SearchAction(token_ids=[10**6])):
            with pytest.raises(RuntimeError, match="expected"):
                env.step(wrong)
        with pytest.raises(RuntimeError, match="question_index"):
            env.reset(question_index=10**6)
        for turn in expected.turns:
            env.step(SearchAction(token_ids=turn))
        assert env.state().token_ids == expected.token_ids


def test_without_a_server():
    env = SearchEnvironment(SharedTask.of(ENV_ID, OPTIONS))
    assert isinstance(env, Environment)
    assert env.state.token_ids == []
    assert env.get_metadata().name == "search_gym"
    env.reset(question_index=0, episode_id="mine")
    assert env.state.episode_id == "mine"
    with pytest.raises(ActionError, match="either token_ids or text"):
        env.step(SearchAction())
    with pytest.raises(OptionError, match="question_index"):
        env.reset(question_index=-1)


def test_sessions_of_an_application_share_questions_and_retriever():
    shared = SharedTask.of(ENV_ID, OPTIONS)
    assert SharedTask.of(ENV_ID, dict(reversed(OPTIONS.items()))) is shared
    assert SharedTask.of(ENV_ID, {**OPTIONS, "top_k": 1}) is not shared
    with pytest.raises(OptionError, match="the id of a search environment"):
        SharedTask.of("CartPole-v1")


def test_the_code_of_the_page_runs(tmp_path):
    check(ROOT / "docs" / "adapters" / "openenv.md", tmp_path, slow=False)
