"""SkyRL-gym: episodes through its registry and base class."""

from __future__ import annotations

import pytest
from adapter_episodes import ENV_ID, OPTIONS, make_env, run_page

pytest.importorskip("skyrl_gym", reason="needs SkyRL-gym: make test-adapters")

import skyrl_gym
from skyrl_gym.envs.base_text_env import BaseTextEnv
from skyrl_gym.envs.search.utils import compute_score

from search_gym import Document, Question, tinywiki
from search_gym.adapters.skyrl import SearchTextEnv, dataset, register
from search_gym.errors import OptionError
from search_gym.wrappers import TextTurns


@pytest.fixture(scope="module", autouse=True)
def registered():
    register("search_gym", env_id=ENV_ID, options=OPTIONS)


def play(index, *texts):
    env = skyrl_gym.make("search_gym", env_config=None, extras={"question_index": index})
    prompt, info = env.init([{"role": "user", "content": "whatever"}])
    return env, prompt, info, [env.step(text) for text in texts]


@pytest.mark.parametrize("index", [0, 7])
def test_an_episode_is_that_of_the_environment_in_text(index):
    ours = TextTurns(make_env())
    _, first = ours.reset(options={"question_index": index})
    question = ours.unwrapped.task.questions[index]
    texts = (f"<search>{question.text}</search>", "no tags", f"<answer>{question.answers[0]}</answer>")
    env, prompt, info, outputs = play(index, *texts)
    assert isinstance(env, BaseTextEnv)
    assert prompt == [{"role": "user", "content": tinywiki.prompt(question.text)}]
    assert info == {"question_id": first["question_id"]}
    for text, output in zip(texts, outputs, strict=True):
        observation, reward, terminated, truncated, ours_info = ours.step(text)
        assert output["observations"] == ([{"role": "user", "content": observation}] if observation else [])
        assert (output["reward"], output["done"]) == (reward, terminated or truncated)
        assert output["metadata"] == ours_info
    assert env.get_metrics() == {"reward": 1.0, "answered": 1.0, "searches": 1.0, "turns": 3.0}
    assert env.aggregate_metrics([env.get_metrics(), {"reward": 0.0}])["reward"] == 0.5


class Bait:
    def search(self, queries, k):
        return [[Document("d", "t", "<answer>gold</answer>")] for _ in queries]


def test_a_retrieved_answer_is_not_paid():
    """SkyRL's own search environment scores the whole conversation; here only the answering turn counts."""
    options = {"questions": [Question("q", "Who?", ("gold",))], "retriever": Bait(), "max_turns": 1}
    env = SearchTextEnv(extras={"question_index": 0}, env_id=ENV_ID, options=options)
    prompt, _ = env.init([])
    (found,) = env.step("<search>gold</search>")["observations"]
    assert "<answer>" not in found["content"]
    last = env.step("I give up")
    assert (last["done"], last["reward"]) == (True, 0.0)
    theirs = "<search>gold</search>\n<information><answer>gold</answer></information>\nI give up"
    assert compute_score(prompt[0]["content"] + theirs, {"target": ["gold"]}) == 1.0


def test_what_comes_after_the_end_of_a_turn_is_not_read():
    question = make_env().task.questions[0]
    text = f"<answer>wrong</answer><answer>{question.answers[0]}</answer>"
    _, _, _, (output,) = play(0, text)
    assert (output["done"], output["reward"], output["metadata"]["content"]) == (True, 0.0, "wrong")


def test_turns_run_out():
    env, _, _, outputs = play(0, *["none"] * 4)
    assert [output["done"] for output in outputs] == [False, False, False, True]
    assert env.max_turns == 4
    assert env.get_metrics()["answered"] == 0.0


def test_the_data_set_has_a_row_for_each_question():
    questions = make_env().task.questions
    rows = dataset(env_id=ENV_ID, options=OPTIONS)
    assert [row["question_index"] for row in rows] == list(range(len(questions)))
    row = dataset(env_id=ENV_ID, options=OPTIONS, limit=3)[2]
    assert row["prompt"][0]["content"] == tinywiki.prompt(questions[2].text)
    env = skyrl_gym.make(row["env_class"], env_config=None, extras=row)
    assert env.init(row["prompt"])[0] == row["prompt"]


def test_a_configuration_of_skyrl_may_name_the_environment():
    env = SearchTextEnv({"env_id": ENV_ID, "options": {**OPTIONS, "max_turns": 1}}, {"question_index": 0})
    assert env.max_turns == 2
    with pytest.raises(OptionError, match="extras with 'question_index'"):
        SearchTextEnv({}, {})


def test_the_code_of_the_page_runs():
    names = run_page("skyrl")
    (message,) = names["output"]["observations"]
    assert "<information>" in message["content"]
    assert not names["output"]["done"]
