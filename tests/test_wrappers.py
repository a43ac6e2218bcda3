"""Views of the environment for other libraries: what they accept, and that the episode stays the environment's own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import search_gym  # noqa: F401, registers the environments
from search_gym.errors import ActionError, OptionError
from search_gym.macro_actions import find_phrases
from search_gym.wrappers import FullContext, MacroActions, OneToken, TextTurns

TINY = "search_gym/TinyWiki-v0"


def tiny(**options):
    return gym.make(TINY, question_options={"kinds": ["1-hop"], "num_questions": 20}, top_k=1, **options)


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
@pytest.mark.parametrize("view", [FullContext, TextTurns, OneToken, MacroActions])
def test_gymnasiums_checker_has_nothing_to_say(view):
    check_env(view(tiny()), skip_render_check=True)


@pytest.mark.parametrize("view", [OneToken, MacroActions])
def test_stable_baselines_checker_has_nothing_to_say(view):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="needs the extra sb3")
    checker.check_env(view(tiny()))


@pytest.mark.parametrize(
    ("sentence", "names", "others"),
    [
        ("Who is the mayor of New Ulm?", ["New Ulm"], ["mayor"]),
        ("What is the founding year of the employer of Ada Lovelace?", ["Ada Lovelace"], ["founding year", "employer"]),
        ("1912 is the release year of Nugous Notola.", ["1912", "Nugous Notola"], ["release year"]),
        ("", [], []),
    ],
)
def test_phrases(sentence, names, others):
    assert find_phrases(sentence) == (names, others)


def test_macro_actions_search_and_answer_through_the_environment():
    env = MacroActions(tiny(), num_names=4, num_relations=2)
    for index in range(20):
        env.reset(options={"question_index": index})
        question = env.get_wrapper_attr("episode").question
        ((subject, relation, found),) = question.metadata["chain"]
        assert env.names == (subject,)
        assert env.relations == (relation,)
        search = next(i for i, a in enumerate(env.actions) if a[:3] == ("search", 0, 0))
        _, reward, *_, info = env.step(search)
        assert (reward, info["event"], info["content"]) == (0.0, "search", f"{subject} {relation}")
        assert env.names[:2] == (subject, found)
        answer = next(i for i, a in enumerate(env.actions) if a[:2] == ("answer", 1))
        observation, reward, terminated, _, info = env.step(answer)
        assert (reward, terminated, info["content"]) == (1.0, True, found)
        assert observation in env.observation_space
        transcript = env.get_wrapper_attr("transcript")
        assert transcript.loss_mask.sum() + transcript.info_mask.sum() == len(transcript) - transcript.spans[0].stop


def test_an_action_on_an_empty_slot_is_an_invalid_turn_and_masked():
    env = MacroActions(tiny())
    env.reset(seed=0)
    empty = next(i for i, a in enumerate(env.actions) if a[:2] == ("answer", 5))
    assert not env.action_masks()[empty]
    assert env.step(empty)[4]["event"] == "invalid"
    with pytest.raises(ActionError, match="expected an action in"):
        env.step(len(env.actions))
    with pytest.raises(OptionError, match="num_names >= 1"):
        MacroActions(tiny(), num_names=0)


def test_only_answers_are_left_in_the_last_turn():
    env = MacroActions(tiny(max_turns=1))
    env.reset(seed=0)
    env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert {env.actions[i].event for i in np.flatnonzero(env.action_masks())} == {"answer"}


def test_one_token_views_show_the_transcript_and_its_masks():
    env = OneToken(tiny())
    env.reset(seed=0)
    codec = env.get_wrapper_attr("task").codec
    for token in codec.encode("<search> x </search>").tolist():
        observation, *_, info = env.step(token)
    assert info["event"] == "search"
    transcript = env.get_wrapper_attr("transcript")
    length = len(transcript)
    assert observation["token_ids"][:length].tolist() == transcript.token_ids.tolist()
    assert (observation["token_ids"][length:] == codec.pad_id).all()
    assert observation["attention_mask"].sum() == length
    for name in ("loss_mask", "info_mask"):
        assert observation[name][:length].astype(bool).tolist() == getattr(transcript, name).tolist()
    masks = env.action_masks()
    assert not masks[codec.pad_id]
    assert not masks[codec.eos_id]


def test_text_turns_and_full_context():
    env = TextTurns(tiny())
    prompt, _ = env.reset(options={"question_index": 0})
    question = env.get_wrapper_attr("episode").question
    assert question.text in prompt
    observation, *_, info = env.step("I do not know")
    assert info["event"] == "invalid"
    assert "invalid" in observation
    assert env.step(f"<answer> {question.answers[0]} </answer>")[1] == 1.0
    with pytest.raises(ActionError, match="text of a turn"):
        env.step(np.array([1]))
    full = FullContext(tiny())
    full.reset(options={"question_index": 0})
    observation, *_ = full.step(full.get_wrapper_attr("task").codec.encode("<search> x </search>"))
    assert observation.tolist() == full.get_wrapper_attr("transcript").token_ids.tolist()


@pytest.mark.parametrize("view", [OneToken, MacroActions])
def test_gymnasiums_wrappers_and_vectors_take_the_views(view):
    wrapped = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(view(tiny()), 2))
    wrapped.reset(seed=0)
    for _ in range(2):
        *_, terminated, truncated, info = wrapped.step(
            int(np.flatnonzero(wrapped.get_wrapper_attr("action_masks")())[0])
        )
    assert terminated or truncated
    assert info["episode"]["l"] <= 2
    envs = gym.vector.SyncVectorEnv([lambda: view(tiny())] * 2)
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    flat = gym.wrappers.FlattenObservation(view(tiny()))
    assert flat.reset(seed=0)[0] in flat.observation_space
