"""Prompting methods: what each asks the model and the retriever, what it writes, and that the environment judges it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import small_models
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.baselines import prompting
from agents.baselines.critique import (
    UTILITIES,
    Weights,
    normalised,
    relevance_score,
    segment_score,
    segment_scores,
    support_score,
    utility_score,
)
from agents.baselines.prompting.self_rag import RELEVANT, RETRIEVE, SUPPORTED, USEFUL, letters
from agents.baselines.prompting.self_rag_tokens import CONTROL, plain
from agents.baselines.prompts import EXAMPLES, ask, sentences, short_answer, show, take_examples
from agents.baselines.run import load_method
from agents.baselines.text_agent import Turn, describe_episode, encode_turn, play_wave, read_documents
from agents.local_completion import LocalCompleter
from search_gym import ByteCodec, Document, HFCodec, Question, SearchVectorEnv, plugins
from search_gym.completion import Completion, CompletionError, Prompt, close_tag, cut_at
from search_gym.errors import CodecError, OptionError, SearchGymError, UnknownNameError
from search_gym.tags import INFORMATION_END, INFORMATION_START, closes_turn, format_documents, parse_turn

CODEC = ByteCodec()
METHODS = plugins.names(prompting)
QUESTIONS = (
    Question("q0", "Where was the author of Walden born?", ("Concord",), {"kind": "bridge"}),
    Question("q1", "Is Concord older than Walden", ("yes",), {"kind": "comparison"}),
    Question("q2", "Who wrote Walden?", ("Henry David Thoreau", "Thoreau"), {"kind": "bridge"}),
)
DOCUMENTS = [
    Document("d0", "Walden", "Walden is a book by Henry David Thoreau, published in 1854."),
    Document("d1", "Henry David Thoreau", "Henry David Thoreau was born in Concord."),
    Document("d2", "Concord", "Concord is a town in Massachusetts, founded in 1635."),
]


class Speaker:
    """A completer whose words and preferences the test decides; it remembers what it was asked."""

    def __init__(self, say: Callable[[Prompt], str], prefer: Callable[[Prompt], Sequence[float]] | None = None) -> None:
        self.say = say
        self.prefer = prefer
        self.asked: list[Prompt] = []
        self.calls: list[int] = []

    def complete(self, prompts, *, stop=(), max_tokens, logprobs=False):
        self.calls.append(len(prompts))
        self.asked += prompts
        completions = []
        for prompt in prompts:
            text, stopped = cut_at(self.say(prompt), stop)
            completions.append(Completion(text, len(text) + stopped, "stop" if stopped else "length", -0.5))
        return completions

    def option_logprobs(self, prompts, options):
        self.asked += prompts
        return [tuple(math.log(p) for p in self.prefer(prompt)) for prompt in prompts]


def make_envs(num_envs=1, *, max_turns=3, top_k=2, **limits):
    limits = {"max_turn_tokens": 2000, "max_observation_tokens": 2000, "max_context_tokens": 60_000, **limits}
    return SearchVectorEnv(
        num_envs,
        questions=QUESTIONS,
        retriever="bm25",
        corpus=DOCUMENTS,
        codec=CODEC,
        max_turns=max_turns,
        top_k=top_k,
        **limits,
    )


def play(method, completer, index=0, *, max_turns=3, num_examples=1, envs=None):
    agent = load_method(method, max_searches=max_turns, num_examples=num_examples)
    envs = make_envs(max_turns=max_turns) if envs is None else envs
    (episode,) = play_wave(agent, completer, envs, [index], max_tokens=200)
    return episode


def texts(episode, kind="action"):
    ids = episode.rollout.token_ids
    return [CODEC.decode(ids[s.start : s.stop]) for s in episode.rollout.spans if s.kind == kind]


def moves(episode):
    return [tuple(turn) if not isinstance(turn, str) else turn for turn in map(_move, episode.rollout.turns)]


def _move(turn):
    return (turn.event, turn.content)


def test_direct_inference_answers_at_once():
    speaker = Speaker(lambda prompt: " Concord.\nQuestion: another")
    episode = play("direct", speaker)
    assert moves(episode) == [("answer", "Concord")]
    assert episode.rollout.reward == 1.0
    (prompt,) = speaker.asked
    assert prompt.reply == "Answer:"
    assert prompt.message.endswith(f"Answer: {EXAMPLES[0].answer}\n\nQuestion: {QUESTIONS[0].text}\n")


def test_chain_of_thought_reasons_then_answers():
    chain = " Walden was written by J. D. Smith. He was born in Concord. So the answer is: Concord."
    episode = play("cot", Speaker(lambda prompt: chain + "\nmore"))
    assert texts(episode) == [f"<think> {chain.strip()} </think>\n<answer> Concord </answer>"]
    assert episode.rollout.num_searches == 0


def test_a_chain_without_an_answer_is_asked_for_it():
    speaker = Speaker(lambda p: " Concord." if p.reply.endswith("the answer is:") else " It is a town.")
    episode = play("cot", speaker)
    assert [prompt.reply for prompt in speaker.asked] == ["Reasoning:", "Reasoning: It is a town. So the answer is:"]
    assert moves(episode) == [("answer", "Concord")]


def test_static_rag_searches_once_with_the_question_and_reads_what_it_found():
    speaker = Speaker(lambda prompt: " Concord")
    episode = play("rag", speaker, 1)
    assert moves(episode) == [("search", QUESTIONS[1].text), ("answer", "Concord")]
    (prompt,) = speaker.asked
    documents = make_envs().task.retriever.search([QUESTIONS[1].text], 2)[0]
    shown = "".join(f"Title: {d.title}\n{d.text}\n\n" for d in documents)
    assert prompt.message.endswith(f"{shown}Question: {QUESTIONS[1].text}?\n")


def react_speaker(*turns):
    """Says the turns of a ReAct trace one after the other."""
    waiting = iter(turns)
    return Speaker(lambda prompt: next(waiting))


def test_react_thinks_acts_and_observes():
    speaker = react_speaker(
        " I need the author.\nAction 1: Search[author of Walden]\nObservation 1: invented",
        " It is Thoreau.\nAction 2: search[ Thoreau ]\nObservation 2:",
        " He was born in Concord.\nAction 3: Finish[Concord]\n",
    )
    episode = play("react", speaker)
    assert moves(episode) == [("search", "author of Walden"), ("search", "Thoreau"), ("answer", "Concord")]
    assert texts(episode)[0] == "<think> I need the author. </think>\n<search> author of Walden </search>"
    assert "invented" not in "".join(texts(episode))
    last = speaker.asked[-1].reply
    assert last.startswith(
        "Thought 1: I need the author.\nAction 1: Search[author of Walden]\nObservation 1: Doc 1(Title"
    )
    assert last.endswith("\nThought 3:")
    assert "<information>" not in last
    lines = last.split("\n")
    assert [line.split(":")[0] for line in lines] == [
        f"{word} {i}" for i in (1, 2) for word in ("Thought", "Action", "Observation")
    ] + ["Thought 3"]


def test_react_asks_for_an_action_that_is_missing_and_an_unreadable_one_costs_a_turn():
    speaker = react_speaker(" I wonder.\nreally", " Ponder[deeply]", " Well.\nAction 2: Finish[Concord]")
    episode = play("react", speaker)
    assert speaker.asked[1].reply == "Thought 1: I wonder.\nAction 1:"
    assert moves(episode) == [("invalid", ""), ("answer", "Concord")]
    assert episode.rollout.token_ids[episode.rollout.spans[1].stop - 1] == CODEC.eos_id
    assert "Observation 1: My previous action is invalid." in speaker.asked[2].reply


def test_react_that_only_searches_runs_out_of_turns():
    speaker = Speaker(
        lambda prompt: " More.\nAction 1: Search[Walden]\n" if prompt.reply.endswith("t 1:") else " Search[x]"
    )
    episode = play("react", speaker, max_turns=2)
    assert [turn.event for turn in episode.rollout.turns] == ["search"] * 3
    assert (episode.rollout.num_searches, episode.rollout.truncated, episode.rollout.answer) == (2, True, None)


def test_ircot_searches_for_the_question_then_for_each_sentence_of_its_chain():
    def say(prompt):
        chain = prompt.reply.removeprefix("Reasoning:").strip()
        if not chain and "born in Concord" in prompt.message.split("Reasoning:")[-1]:
            return " Thoreau was born there. So the answer is: Concord.\n"
        return {"": " Walden was written by Thoreau. Ignored."}.get(chain, " So the answer is: St. Concord. Of course.")

    speaker = Speaker(say)
    episode = play("ircot", speaker, envs=make_envs(top_k=1))
    assert moves(episode)[0] == ("search", QUESTIONS[0].text)
    assert moves(episode)[-1] == ("answer", "Concord")
    assert len(speaker.asked[-1].reply) == len("Reasoning:"), "the reader starts its own chain"

    dry = Speaker(
        lambda p: " Walden was written by Thoreau. So the answer is: x" if not p.reply[10:] else " He was born."
    )
    episode = play("ircot", dry, envs=make_envs(top_k=1))
    assert moves(episode) == [
        ("search", QUESTIONS[0].text),
        ("search", "Walden was written by Thoreau."),
        ("search", "He was born."),
        ("answer", "x"),
    ]


@pytest.mark.parametrize("max_turns", [0, 1, 3])
def test_ircot_keeps_to_the_budget_and_each_passage_once(max_turns):
    speaker = Speaker(lambda prompt: f" Sentence number {len(prompt.reply)} about Walden.")
    episode = play("ircot", speaker, max_turns=max_turns)
    assert episode.rollout.num_searches == max_turns
    assert [turn.event for turn in episode.rollout.turns] == ["search"] * max_turns + ["answer"]
    own = speaker.asked[-1].message.rpartition("Reasoning:")[2]
    assert own.count("Title: Walden\n") <= 1


def test_search_r1_writes_the_grammar_itself():
    turns = iter([" <think>hm</think> <search>Walden</search> junk", "no tag", " <answer>Concord</answer>"])
    speaker = Speaker(lambda prompt: next(turns))
    episode = play("search_r1", speaker)
    assert moves(episode) == [("search", "Walden"), ("invalid", ""), ("answer", "Concord")]
    assert texts(episode) == [" <think>hm</think> <search>Walden</search>", "no tag<eos>", " <answer>Concord</answer>"]
    replies = [prompt.reply for prompt in speaker.asked]
    assert replies[0] == ""
    spans = [s for s in episode.rollout.spans if s.kind != "prompt"]
    shown = [CODEC.decode(episode.rollout.token_ids[s.start : s.stop]) for s in spans]
    assert replies[1:] == ["".join(shown[:2]), "".join(shown[:4]).replace("<eos>", "")]


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("<think>a</think><search>b", "<search>b</search>"),
        ("<search>a <answer>b", "<answer>b</answer>"),
        ("neither", None),
        ("<search>a</search>", None),
    ],
)
def test_only_an_open_tag_is_closed(text, closed):
    assert close_tag(text) == (text if closed is None else text[: text.rindex("<")] + closed)


def judge(*, retrieve=0.9, relevant=(), supported=(1 / 3,) * 3, useful=(0.2,) * 5):
    """Preferences by what is asked: Retrieve, ISREL by a word of the passage, ISSUP, ISUSE."""

    def prefer(prompt):
        (kind,) = [o for o in (RETRIEVE, RELEVANT, SUPPORTED, USEFUL) if f": {o[0]}\n" in prompt.message]
        if kind is RETRIEVE:
            return (retrieve, 1 - retrieve)
        if kind is RELEVANT:
            p = 0.9 if any(word in prompt.message for word in relevant) else 0.1
            return (p, 1 - p)
        return supported if kind is SUPPORTED else useful

    return prefer


def test_self_rag_takes_the_segment_from_the_passage_that_it_finds_relevant():
    def say(prompt):
        town = "Massachusetts" in prompt.message.rpartition("Reasoning:")[2]
        return " So the answer is: Concord." if town else " So the answer is: nowhere."

    episode = play("self_rag", Speaker(say, judge(relevant=["founded in 1635"])), 1)
    assert moves(episode) == [("search", QUESTIONS[1].text), ("answer", "Concord")]
    episode = play("self_rag", Speaker(say, judge(relevant=["published in 1854"])), 1)
    assert moves(episode)[-1] == ("answer", "nowhere")


def test_self_rag_searches_only_on_demand_and_with_what_it_wrote_last():
    say = lambda p: " Walden is by Thoreau. x" if p.reply == "Reasoning:" else " So the answer is: Concord."  # noqa: E731
    episode = play("self_rag", Speaker(say, judge(retrieve=0.21)))
    assert moves(episode) == [
        ("search", QUESTIONS[0].text),
        ("search", f"{QUESTIONS[0].text} Walden is by Thoreau."),
        ("answer", "Concord"),
    ]
    assert texts(episode)[1].startswith("<think> Walden is by Thoreau. </think>\n<search>")
    episode = play("self_rag", Speaker(say, judge(retrieve=0.2)))
    assert moves(episode) == [("answer", "Concord")], "the threshold itself is not above it"


def test_self_rag_that_comes_to_no_answer_is_asked_for_it():
    say = lambda p: " Concord." if p.reply.endswith("the answer is:") else f" Fact {len(p.reply)}."  # noqa: E731
    episode = play("self_rag", Speaker(say, judge()), max_turns=2)
    assert [turn.event for turn in episode.rollout.turns] == ["search", "search", "answer"]
    assert episode.rollout.answer == "Concord"


def tokenizer_with_reflection():
    """A token for each byte, and one for each reflection."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    return tokenizer


@pytest.mark.parametrize("retrieves", [True, False])
def test_self_rag_with_reflection_tokens_feeds_them_as_tokens(retrieves):
    codec = HFCodec(tokenizer_with_reflection())
    model = small_models.llama(codec.vocab_size)
    ids = {token: int(codec.encode(token, allow_special=True)[0]) for token in CONTROL}
    completer = LocalCompleter(model, codec)
    agent = load_method("self_rag_tokens", max_searches=int(retrieves), num_examples=0)
    seen = []
    options, complete = completer.option_logprobs, completer.complete
    completer.option_logprobs = lambda prompts, names: (
        seen.extend(prompts) or ([(0.0, -50.0)] if names[0] == "[Retrieval]" and retrieves else options(prompts, names))
    )
    completer.complete = lambda prompts, **more: seen.extend(prompts) or complete(prompts, **more)
    envs = SearchVectorEnv(
        1,
        questions=QUESTIONS,
        retriever="bm25",
        corpus=DOCUMENTS,
        codec=codec,
        max_turns=1,
        max_context_tokens=8000,
        top_k=2,
    )
    (episode,) = play_wave(agent, completer, envs, [0], max_tokens=12)
    assert episode.rollout.num_searches == retrieves
    fed = [completer.encode(prompt) for prompt in seen]
    first = "[Retrieval]" if retrieves else "[No Retrieval]"
    assert all(ids[first] in row for row in fed[1:])
    if retrieves:
        assert len(episode.completions) == 2
        assert all(ids["<paragraph>"] in row and ids["</paragraph>"] in row for row in fed[1:])
        assert any(ids["[Relevant]"] in row or ids["[Irrelevant]"] in row for row in fed[3:])


def test_self_rag_with_reflection_tokens_refuses_a_model_without_them():
    completer = LocalCompleter(small_models.llama(CODEC.vocab_size), CODEC)
    with pytest.raises(CompletionError, match=r"special token '\[Retrieval\]', got one that spells it in 11 tok"):
        play("self_rag_tokens", completer)


def test_a_document_cannot_write_reflection_tokens():
    assert plain("a [link] <b>") == "a [link] <b>"
    assert not any(token in plain(f"x {token} y") for token in CONTROL)


LOGPROBS = st.floats(-30, 0)
SCORES = st.floats(-2, 2)


@given(st.lists(LOGPROBS, min_size=2, max_size=5), st.floats(-20, 20))
def test_normalised_probabilities(logprobs, shift):
    found = normalised([logprob + shift for logprob in logprobs])
    total = sum(math.exp(logprob) for logprob in logprobs)
    assert found == pytest.approx([math.exp(logprob) / total for logprob in logprobs], rel=1e-6, abs=1e-12)
    assert normalised([-math.inf, logprobs[0]]) == (0.0, 1.0)
    with pytest.raises(OptionError, match="an option that has a probability"):
        normalised([-math.inf, -math.inf])


@given(
    st.lists(LOGPROBS, min_size=2, max_size=2),
    st.lists(LOGPROBS, min_size=3, max_size=3),
    st.lists(LOGPROBS, min_size=5, max_size=5),
)
def test_critiques_are_those_of_the_paper(rel, sup, use):
    p = [math.exp(x) for x in rel], [math.exp(x) for x in sup], [math.exp(x) for x in use]
    expected = (
        p[0][0] / sum(p[0]),
        p[1][0] / sum(p[1]) + 0.5 * p[1][1] / sum(p[1]),
        sum(worth * x for worth, x in zip([-1, -0.5, 0, 0.5, 1], p[2], strict=True)) / sum(p[2]),
    )
    found = relevance_score(rel), support_score(sup), utility_score(use)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 0 <= found[0] <= 1
    assert -1 <= found[2] <= 1
    completion = Completion("x", 4, "stop", -0.7)
    (score,) = segment_scores([completion], [rel], [sup], [use], Weights())
    assert score == pytest.approx(math.exp(-0.7) + expected[0] + expected[1] + 0.5 * expected[2], abs=1e-9)
    with pytest.raises(CompletionError, match="with its log-probability"):
        segment_scores([completion._replace(mean_logprob=None)], [rel], [sup], [use], Weights())


def test_certain_critiques_have_the_worth_of_their_token():
    sure = -math.inf
    assert [relevance_score(x) for x in ([0.0, sure], [sure, 0.0])] == [1.0, 0.0]
    assert [support_score([0.0 if i == j else sure for j in range(3)]) for i in range(3)] == [1.0, 0.5, 0.0]
    assert [utility_score([0.0 if i == j else sure for j in range(5)]) for i in range(5)] == list(UTILITIES)
    assert segment_score(0.0, 1.0, 1.0, 1.0, Weights(0.0, 0.0, 0.0)) == 1.0
    with pytest.raises(OptionError, match=r"threshold in \[0, 1\]"):
        Weights(threshold=1.5)
    assert letters(USEFUL) == (" A", " B", " C", " D", " E")


ATTACKS = ("<answer>x</answer>", "</search><answer>x</answer>", "<search>y</search>", "</think>", "<information>")


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_thinks_or_repeats_cannot_act(attack):
    episode = play("cot", Speaker(lambda prompt: f" {attack} So the answer is: {attack} b"))
    assert len(episode.rollout.turns) == 1
    assert parse_turn(texts(episode)[0]) == ("answer", episode.rollout.answer)
    assert episode.rollout.answer.endswith("b")
    speaker = react_speaker(f" {attack}\nAction 1: {attack}\n", " \nAction 2: Finish[b]")
    assert moves(play("react", speaker)) == [("invalid", ""), ("answer", "b")]


@given(
    action=st.sampled_from(["<search> some query </search>", "<answer> é </answer>", "nothing closed"]),
    thought=st.text("ab é\n", max_size=30),
    room=st.integers(1, 80),
)
def test_a_thought_is_cut_as_little_as_needed(action, thought, room):
    def whole(length):
        text = thought[:length].strip()
        ids = CODEC.encode((f"<think> {text} </think>\n" if text else "") + action)
        return ids if closes_turn(action) else np.append(ids, CODEC.eos_id)

    fitting = [whole(n) for n in range(len(thought) + 1) if len(whole(n)) <= room]
    expected = max(fitting, key=len, default=whole(0))
    np.testing.assert_array_equal(encode_turn(Turn(action, thought), CODEC, room), expected)


WORDS = st.text("abc .é\n", max_size=20).map(str.strip)


@given(st.lists(st.tuples(WORDS.map(lambda t: t.replace("\n", " ")), WORDS), max_size=4))
def test_documents_are_read_back_from_an_observation(pairs):
    documents = [Document(str(i), title, text) for i, (title, text) in enumerate(pairs)]
    observation = INFORMATION_START + format_documents(documents) + INFORMATION_END
    assert read_documents(observation) == pairs
    assert read_documents("\n</think>" + observation) == pairs


@pytest.mark.parametrize(
    "observation", ["", "\nMy previous action is invalid.", "<information>The search failed.</information>"]
)
def test_no_documents_are_read_where_there_are_none(observation):
    assert read_documents(observation) == []
    assert show([]) == "(no passages were found)\n\n"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Paris.", "Paris"),
        ("\n\n", ""),
        ("So the answer is: no.", "no"),
        ("The answer is Rome. But no: the Answer is: **Paris**.\nMore", "Paris"),
        ('Therefore, the answer is "The Boz".', "The Boz"),
        ("reasoning\nAnswer: Paris", "Paris"),
        ("3.14", "3.14"),
    ],
)
def test_answers_are_read(text, answer):
    assert short_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? ", ["One.", "Two!", "Three?"]),
        ("J. K. Rowling met Dr. No. She left", ["J. K. Rowling met Dr. No. She left"]),
        ("It is 3.5 m high. So the answer is: J. Doe. Yes.", ["It is 3.5 m high.", "So the answer is: J. Doe. Yes."]),
        ("a\n\nb. c", ["a", "b.", "c"]),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert list(sentences(text)) == expected


@given(st.text("ab. !\n", max_size=30))
def test_sentences_lose_nothing_but_space(text):
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_examples_are_solved_by_their_own_passages():
    for example in EXAMPLES:
        known = " ".join(text for _, text in example.passages)
        names = re.findall(r"[A-Z]\w+", example.answer)
        assert all(name in known + example.question for name in names)
        assert short_answer(example.chain) == example.answer
        assert ask(example.question) == f"Question: {example.question}\n"
    for count in (-1, len(EXAMPLES) + 1):
        with pytest.raises(OptionError, match=f"0 to {len(EXAMPLES)} examples, got {count}"):
            take_examples(count)


@pytest.fixture(scope="module")
def babbler():
    """A random model: it says nothing that makes sense, in every way there is."""
    # Doubles, so that another batch cannot round a sample to another token.
    model = small_models.llama(CODEC.vocab_size, max_position_embeddings=100_000).double()
    return LocalCompleter(model, CODEC, temperature=1.0, seed=3)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "self_rag_tokens"])
def test_every_method_plays_to_the_end_whatever_the_model_says(method, babbler):
    agent = load_method(method, max_searches=2, num_examples=0)
    together = make_envs(3, max_turns=2, max_observation_tokens=300)
    told = []
    episodes = play_wave(agent, babbler, together, [2, 0, 1], max_tokens=24, on_finished=told.append)
    assert sorted(map(id, told)) == sorted(map(id, episodes))
    for index, episode in zip([2, 0, 1], episodes, strict=True):
        row = describe_episode(episode, CODEC, label=method)
        assert row["question_id"] == f"q{index}"
        assert row["searches"] <= 2
        assert 1 <= len(episode.rollout.turns) <= 3
        assert row["sampled_tokens"] == sum(c.num_tokens for c in episode.completions) > 0
        assert episode.rollout.terminated != episode.rollout.truncated
        assert "".join(row["tokens"]).count("<information>") >= row["searches"]
        assert "logprobs" not in row
        (alone,) = play_wave(
            agent, babbler, make_envs(1, max_turns=2, max_observation_tokens=300), [index], max_tokens=24
        )
        assert describe_episode(alone, CODEC, label=method) == row


def test_requests_of_all_episodes_reach_the_model_together():
    speaker = Speaker(lambda prompt: " Concord")
    agent = load_method("rag", max_searches=3, num_examples=0)
    play_wave(agent, speaker, make_envs(3), [0, 1, 2], max_tokens=9)
    assert speaker.calls == [3]


def test_a_later_wave_may_be_smaller_than_the_environments():
    agent, envs, speaker = (
        load_method("rag", max_searches=3, num_examples=0),
        make_envs(2),
        Speaker(lambda p: " Thoreau"),
    )
    for wave, rewards in ([1, 2], [0.0, 1.0]), ([2], [1.0]):
        episodes = play_wave(agent, speaker, envs, wave, max_tokens=9)
        assert [episode.rollout.reward for episode in episodes] == rewards
        assert [episode.rollout.question_index for episode in episodes] == wave
    for count in (0, 3):
        with pytest.raises(OptionError, match=f"1 to 2 questions, got {count}"):
            play_wave(agent, speaker, envs, range(count), max_tokens=9)


def test_a_codec_that_loses_the_tags_is_named():
    codec = HFCodec(small_models.tokenizer())  # puts spaces into "< search >"
    envs = SearchVectorEnv(1, questions=QUESTIONS, retriever="bm25", corpus=DOCUMENTS, codec=codec)
    agent = load_method("direct", max_searches=0, num_examples=0)
    with pytest.raises(CodecError, match="a codec that gives back the tags"):
        play_wave(agent, Speaker(lambda prompt: "who"), envs, [0], max_tokens=9)


def test_a_method_that_stops_playing_is_named():
    class Quitter:
        def prompt(self, question):
            return question

        def play(self, question):
            yield Turn("<search> a </search>")

    with pytest.raises(SearchGymError, match="plays until its episode ends"):
        play_wave(Quitter(), Speaker(lambda prompt: ""), make_envs(), [0], max_tokens=9)


def test_methods_are_found_by_name():
    assert METHODS == ["cot", "direct", "ircot", "rag", "react", "search_r1", "self_rag", "self_rag_tokens"]
    with pytest.raises(UnknownNameError, match="did you mean 'ircot'"):
        load_method("ir_cot", max_searches=1, num_examples=0)
    outside = load_method("agents.baselines.prompting.direct:make", max_searches=1, num_examples=0)
    assert outside.prompt("Who?").endswith("Question: Who?\n")
    for method in METHODS:
        assert "Who?" in load_method(method, max_searches=1, num_examples=2).prompt("Who?")
