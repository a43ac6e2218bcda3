"""The native vector environment against Gymnasium's own vectorisation of the single one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given
from hypothesis import strategies as st

from search_gym import ByteCodec, Question, SearchEnv, SearchVectorEnv
from search_gym.errors import (
    ActionError,
    EpisodeFinishedError,
    OptionError,
    PromptError,
    RetrievalError,
    SearchGymError,
    StateError,
)
from tests.stubs import QUESTIONS, EchoRetriever, FailingRetriever, StubRetriever, env_options, make_env, turns

CODEC = ByteCodec()
SEARCH, ANSWER, NOTHING = (CODEC.encode(text) for text in ("<search>x</search>", "<answer>James Joyce</answer>", ""))


def make(num_envs: int, **options: Any) -> SearchVectorEnv:
    envs = gym.make_vec("search_gym/SearchQA-v0", num_envs=num_envs, **env_options(**options))
    assert isinstance(envs, SearchVectorEnv)
    return envs


def assert_same(one: Any, other: Any) -> None:
    """Equality of everything that a vector environment returns, types and shapes included."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tolist() == other.tolist()
    else:
        assert one == other


@given(data=st.data(), num_envs=st.integers(1, 4), seed=st.integers(0, 2**31), max_turns=st.integers(0, 2))
def test_it_agrees_step_by_step_with_gymnasiums_vectorisation(
    data: st.DataObject, num_envs: int, seed: int, max_turns: int
) -> None:
    options = env_options(retriever=EchoRetriever(), max_turns=max_turns, max_turn_tokens=40, max_context_tokens=1200)
    native = SearchVectorEnv(num_envs, **options)
    sync = SyncVectorEnv([lambda: SearchEnv(**options)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    assert_same(native.reset(seed=seed), sync.reset(seed=seed))
    chunks = [data.draw(turns(CODEC)) for _ in range(num_envs)]
    for step in range(max(map(len, chunks))):
        actions = tuple(np.array(stream[step % len(stream)], dtype=np.int64) for stream in chunks)
        result = native.step(actions)
        assert_same(result, sync.step(actions))
        assert result[0] in native.observation_space
        is_over = result[2] | result[3]
        if is_over.any():
            mask = data.draw(st.sampled_from([is_over, is_over | (np.arange(num_envs) == 0)]))
            again = {"reset_mask": mask}
            new_seed = data.draw(st.sampled_from([None, 5]))
            assert_same(
                native.reset(seed=new_seed, options=dict(again)), sync.reset(seed=new_seed, options=dict(again))
            )
    assert [transcript.spans for transcript in native.transcripts] == [
        env.unwrapped.transcript.spans for env in sync.envs
    ]
    assert list(native.transcripts) == list(sync.get_attr("transcript"))


@given(st.data())
def test_finished_slots_idle_while_the_others_go_on(data: st.DataObject) -> None:
    """Against a loop over single environments that leaves the finished ones alone."""
    num_envs = 3
    native = make(num_envs, max_turns=1)
    singles = [make_env(max_turns=1) for _ in range(num_envs)]
    native.reset(seed=3)
    for slot, env in enumerate(singles):
        env.reset(seed=3 + slot)
    is_over = [False] * num_envs
    streams = [data.draw(turns(CODEC)) for _ in range(num_envs)]
    terminated_before, truncated_before = np.zeros(num_envs, bool), np.zeros(num_envs, bool)
    for step in range(6):
        actions = [
            NOTHING if over else np.array(stream[step % len(stream)])
            for over, stream in zip(is_over, streams, strict=True)
        ]
        observations, rewards, terminated, truncated, infos = native.step(actions)
        for slot, env in enumerate(singles):
            if is_over[slot]:
                assert observations[slot].size == rewards[slot] == 0
                assert (terminated[slot], truncated[slot]) == (terminated_before[slot], truncated_before[slot])
                assert not any(infos[key][slot] for key in infos if key.startswith("_"))
                continue
            observation, reward, *ends, info = env.step(actions[slot])
            assert observations[slot].tolist() == observation.tolist()
            assert (rewards[slot], terminated[slot], truncated[slot]) == (reward, *ends)
            assert {key: infos[key][slot] for key in info} == info
            assert all(infos[f"_{key}"][slot] for key in info)
            is_over[slot] = any(ends)
        terminated_before, truncated_before = terminated, truncated
    assert list(native.transcripts) == [env.transcript for env in singles]


def test_all_searches_of_a_step_are_one_call_in_the_order_of_the_slots() -> None:
    retriever = StubRetriever()
    envs = make(4, retriever=retriever, max_turns=1)
    envs.reset(seed=0)
    texts = [["<search>a</search>", "<think>", "<search>b</search>", ANSWER], [SEARCH, "x</search>", SEARCH, NOTHING]]
    for row in texts:
        envs.step([CODEC.encode(text) if isinstance(text, str) else text for text in row])
    assert retriever.calls == [["a", "b"]]
    envs.reset()
    envs.step([SEARCH] * 4)
    assert retriever.calls == [["a", "b"], ["x"] * 4]


def test_gymnasium_makes_and_describes_it() -> None:
    envs = make(3)
    assert envs.spec is not None
    assert envs.spec.id == "search_gym/SearchQA-v0"
    assert repr(envs) == "SearchVectorEnv(search_gym/SearchQA-v0, num_envs=3)"
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert envs.metadata["render_modes"] == SearchEnv.metadata["render_modes"]
    assert envs.unwrapped is envs
    assert envs.render_mode is None
    assert envs.action_space == batch_space(envs.single_action_space, 3)
    assert envs.observation_space == batch_space(envs.single_observation_space, 3)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    envs.close()
    assert envs.closed
    envs.close()


def test_tinywiki_by_make_vec() -> None:
    envs = gym.make_vec("search_gym/TinyWiki-v0", num_envs=2)
    assert isinstance(envs, SearchVectorEnv)
    envs.action_space.seed(0)
    observations, infos = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert infos["_question_id"].all()
    assert envs.step(envs.action_space.sample())[0] in envs.observation_space


def test_gymnasiums_own_vectorisation_works_too() -> None:
    envs = gym.make_vec("search_gym/SearchQA-v0", num_envs=2, vectorization_mode="sync", **env_options())
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    envs.step((ANSWER, SEARCH))


def test_each_slot_has_its_own_random_numbers() -> None:
    envs = make(3)
    sync = SyncVectorEnv([make_env] * 3)
    for seed in (4, [4, 4, 7]):
        envs.reset(seed=seed)
        sync.reset(seed=seed)
        assert envs.np_random_seed == sync.np_random_seed
        states = [rng.bit_generator.state for rng in envs.np_random]
        assert states == [rng.bit_generator.state for rng in sync.np_random]
    fresh = make(2)
    assert len({rng.random() for rng in fresh.np_random}) == 2
    assert len(set(fresh.np_random_seed)) == 2


def test_questions_can_be_chosen_for_all_or_for_each() -> None:
    envs = make(3)
    _, infos = envs.reset(options={"question_index": 1})
    assert infos["question_index"].tolist() == [1, 1, 1]
    _, infos = envs.reset(options={"question_index": [2, 0, 1]})
    assert infos["question_id"].tolist() == ["q2", "q0", "q1"]
    mask = np.array([False, True, False])
    _, infos = envs.reset(options={"question_index": np.array([0, 2, 0]), "reset_mask": mask})
    assert infos["question_index"].tolist() == [0, 2, 0]
    assert infos["_question_index"].tolist() == mask.tolist()
    assert [episode.question.question_id for episode in envs.episodes] == ["q2", "q2", "q1"]


def test_slots_outside_the_mask_repeat_their_last_observation() -> None:
    envs = make(2)
    (_, first), _ = envs.reset(seed=0)
    mask = np.array([True, False])
    options = {"reset_mask": mask}
    (_, second), _ = envs.reset(options=options)
    assert np.array_equal(first, second)
    assert options == {"reset_mask": mask}
    second[:] = 0
    assert np.array_equal(envs.reset(options=options)[0][1], first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_mask": [True, False]}, r"expected options\['reset_mask'\] \(2,\) bool with a True"),
        ({"reset_mask": np.array([1, 0])}, r"expected options\['reset_mask'\]"),
        ({"reset_mask": np.array([True])}, r"expected options\['reset_mask'\]"),
        ({"reset_mask": np.array([False, False])}, r"expected options\['reset_mask'\]"),
        ({"question": 1}, r"expected options 'reset_mask' and 'question_index', got \['question'\]"),
        ({"question_index": [0, 1, 2]}, "expected one question_index or one for each of 2 slots"),
        ({"question_index": [0, 3]}, r"expected question_index in \[0, 3\), got 3"),
        ({"question_index": 0.5}, "expected options={'question_index': int}"),
    ],
)
def test_options_that_reset_does_not_know(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(2).reset(options=options)


def test_as_many_seeds_as_slots() -> None:
    with pytest.raises(OptionError, match="expected one seed for each of 2 slots, got 3"):
        make(2).reset(seed=[1, 2, 3])
    with pytest.raises(OptionError, match="expected num_envs >= 1, got 0"):
        SearchVectorEnv(0, **env_options())


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        ([SEARCH], ActionError, "expected 3 actions, got 1"),
        ([SEARCH, SEARCH, NOTHING], EpisodeFinishedError, "expected a running episode"),
        ([NOTHING, NOTHING, NOTHING], ActionError, "expected a non-empty 1-D integer array"),
        ([SEARCH, NOTHING, np.array([999])], ActionError, r"expected token ids in \[0, 258\)"),
        ([np.array([-1]), NOTHING, SEARCH], ActionError, r"expected token ids in \[0, 258\)"),
        ([SEARCH, NOTHING, np.array([0.5])], ActionError, "expected a non-empty 1-D integer array"),
    ],
)
def test_a_step_that_is_refused_changes_no_slot(
    actions: Sequence[np.ndarray], error: type[SearchGymError], message: str
) -> None:
    retriever = StubRetriever()
    envs = make(3, retriever=retriever)
    envs.reset(seed=0)
    envs.step([CODEC.encode("<think>"), ANSWER, SEARCH])
    before = envs.get_state()
    with pytest.raises(error, match=message):
        envs.step(actions)
    assert envs.get_state() == before
    assert len(retriever.calls) == 1


def test_a_step_whose_retrieval_failed_changes_no_slot_and_can_be_tried_again() -> None:
    def fail(queries: Sequence[str], k: int) -> Any:
        raise OSError("disk on fire")

    retriever = FailingRetriever(fail)
    envs = make(2, retriever=retriever)
    envs.reset(seed=0)
    before = envs.get_state()
    with pytest.raises(RetrievalError, match="raised OSError: disk on fire"):
        envs.step([SEARCH, ANSWER])
    assert envs.get_state() == before
    retriever.is_down = False
    _, _, terminated, _, infos = envs.step([SEARCH, ANSWER])
    assert terminated.tolist() == [False, True]
    assert infos["event"].tolist() == ["search", "answer"]


def test_a_retrieval_that_failed_is_observed_by_every_slot_that_searched() -> None:
    envs = make(3, retriever=FailingRetriever(lambda queries, k: []), on_retrieval_error="observe")
    envs.reset(seed=0)
    observations, *_, infos = envs.step([SEARCH, CODEC.encode("</search>"), SEARCH])
    assert infos["retrieval_failed"].tolist() == [True, False, True]
    assert ["The search failed." in CODEC.decode(observation) for observation in observations] == [True, False, True]


def test_stepping_before_reset_is_refused() -> None:
    envs = make(2)
    with pytest.raises(EpisodeFinishedError, match="a slot without one"):
        envs.step([ANSWER, ANSWER])
    envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(EpisodeFinishedError, match="a slot without one"):
        envs.step([ANSWER, ANSWER])


def test_what_it_returns_belongs_to_the_caller() -> None:
    envs = make(2)
    observations, _ = envs.reset(seed=0)
    result = envs.step([ANSWER, SEARCH])
    kept = json.dumps(envs.get_state())
    for array in (*observations, *result[0], *result[1:4]):
        array[...] = 0
    assert json.dumps(envs.get_state()) == kept


def test_rendering(capsys: pytest.CaptureFixture[str]) -> None:
    envs = make(2, render_mode="ansi")
    envs.reset(options={"question_index": [0, 1]})
    pages = envs.render()
    assert pages is not None
    for page, question in zip(pages, QUESTIONS[:2], strict=True):
        assert question.text in page
    envs = make(2, render_mode="human")
    envs.reset(seed=0)
    assert envs.render() is None
    assert "--- slot 1 ---" in capsys.readouterr().out
    assert make(2).render() is None


def test_a_state_of_another_size_is_refused() -> None:
    envs = make(2)
    envs.reset(seed=0)
    with pytest.raises(StateError, match=r"expected a state of 3 slots, got \[2\]"):
        make(3).set_state(envs.get_state())


def test_a_reset_that_is_refused_resets_no_slot() -> None:
    questions = [*QUESTIONS, Question("long", "x" * 5000, ("y",))]
    envs = make(3, questions=questions)
    envs.reset(options={"question_index": [0, 1, 2]})
    envs.step([SEARCH, ANSWER, SEARCH])
    before = [transcript.to_state() for transcript in envs.transcripts]
    with pytest.raises(PromptError, match="question 'long'"):
        envs.reset(options={"question_index": [0, 1, 3]})
    assert [transcript.to_state() for transcript in envs.transcripts] == before
    assert [episode.is_finished for episode in envs.episodes] == [False, True, False]


class TestSendAndRecv:
    """The two halves of a step, of some of the slots."""

    def play(self, envs: SearchVectorEnv, streams: Sequence[Sequence[int]], order: Any, background: bool) -> list[Any]:
        """Every slot's stream of single tokens, in whatever order slots are drawn; what each slot was answered."""
        found: list[Any] = [[] for _ in streams]
        places = [0] * len(streams)
        while active := [slot for slot, episode in enumerate(envs.episodes) if not episode.is_finished]:
            slots = order(active)
            chunks = [np.array([streams[slot][places[slot] % len(streams[slot])]]) for slot in slots]
            for slot, result in zip(slots, envs.recv(envs.send(slots, chunks, background=background)), strict=True):
                found[slot].append(result)
                places[slot] += 1
        return found

    @given(data=st.data(), num_envs=st.integers(1, 3), background=st.booleans())
    def test_slots_that_go_on_by_themselves_are_what_they_are_together(
        self, data: st.DataObject, num_envs: int, background: bool
    ) -> None:
        options: dict[str, Any] = {"retriever": EchoRetriever(), "max_turns": 1, "max_turn_tokens": 30}
        streams = [[*data.draw(turns(CODEC))[0], *SEARCH.tolist()] for _ in range(num_envs)]

        def some(active: list[int]) -> list[int]:
            return data.draw(st.lists(st.sampled_from(active), min_size=1, unique=True))

        alone, together = make(num_envs, **options), make(num_envs, **options)
        for envs in (alone, together):
            envs.reset(seed=1)
        found = self.play(alone, streams, some, background)
        expected = self.play(together, streams, list, False)
        for one, other in zip(found, expected, strict=True):
            for a, b in zip(one, other, strict=True):
                assert_same(tuple(a), tuple(b))
        assert [t.token_ids.tolist() for t in alone.transcripts] == [t.token_ids.tolist() for t in together.transcripts]
        alone.close()

    def test_one_call_for_all_that_search_and_none_without(self) -> None:
        retriever = StubRetriever()
        envs = make(3, retriever=retriever)
        envs.reset(seed=0)
        sent = envs.send([2, 0], [SEARCH, SEARCH])
        assert sent.is_ready
        assert envs.send([1], [ANSWER]).searching == ()
        assert [result[4]["event"] for result in envs.recv(sent)] == ["search", "search"]
        assert not envs.episode(1).is_finished, "nothing happens before recv"

    def fail(self, queries: Sequence[str], k: int) -> Any:
        raise RetrievalError("expected an answer, got none")

    @pytest.mark.parametrize("background", [False, True])
    def test_a_failure_is_raised_and_changes_nothing(self, background: bool) -> None:
        envs = make(2, retriever=FailingRetriever(self.fail))
        envs.reset(seed=0)
        before = [len(transcript) for transcript in envs.transcripts]
        with pytest.raises(RetrievalError):
            envs.recv(envs.send([0, 1], [SEARCH, SEARCH], background=background))
        assert [len(transcript) for transcript in envs.transcripts] == before
        envs.close()

    def test_what_does_not_fit_is_refused(self) -> None:
        envs = make(2)
        with pytest.raises(EpisodeFinishedError, match="slot 1"):
            envs.send([1], [SEARCH])
        envs.reset(seed=0)
        with pytest.raises(ActionError, match="expected 1 actions, got 2"):
            envs.send([0], [SEARCH, SEARCH])
