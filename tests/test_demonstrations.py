"""Programs that show each form: right, valid, within the limits, and never knowing more than they were shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.baselines.demonstrations import FORMS, FormName, chain_of, demonstrate
from agents.tasks import EnvConfig, make_envs
from search_gym import Question, SearchVectorEnv, tinywiki
from search_gym.errors import OptionError
from search_gym.retrievers import Document, load
from search_gym.tags import parse_turn

CODEC = tinywiki.codec()
CONFIG = EnvConfig(split="validation", kinds=("1-hop", "2-hop", "3-hop"), top_k=3)
NAMES = {name for kind in tinywiki.TYPES for name in tinywiki.names("validation", kind)}


def text_of(transcript, kind):
    return [CODEC.decode(transcript.token_ids[s.start : s.stop]) for s in transcript.spans if s.kind == kind]


def shown(form: FormName, count=60, config=CONFIG, num_envs=16):
    envs = FORMS[form].make_envs(config, CODEC, num_envs)
    return demonstrate(envs, FORMS[form].policy, range(count)), envs.task.questions


def question_of(transcript, questions):
    (prompt,) = text_of(transcript, "prompt")
    return next(q for q in questions if prompt.startswith(f"Question: {q.text}"))


@pytest.mark.parametrize("form", FORMS)
def test_a_demonstration_is_right_and_every_turn_of_it_counts(form):
    transcripts, questions = shown(form)
    # A chain of guesses may run out of turns; every other form shows every question.
    assert len(transcripts) == 60 if form != "ircot" else len(transcripts) >= 50
    for transcript in transcripts:
        turns = [parse_turn(text) for text in text_of(transcript, "action")]
        assert [event for event, _ in turns[:-1]] == ["search"] * (len(turns) - 1)
        assert turns[-1][0] == "answer"
        assert turns[-1][1] in question_of(transcript, questions).answers
        lengths = [span.stop - span.start for span in transcript.spans if span.kind == "action"]
        assert max(lengths) <= CONFIG.max_turn_tokens
        assert transcript.loss_mask.sum() == sum(lengths)


@pytest.mark.parametrize(
    ("form", "searches"),
    [
        ("direct", lambda hops: 0),
        ("cot", lambda hops: 0),
        ("static-rag", lambda hops: 0),
        ("search-once", lambda hops: 1),
        ("react", lambda hops: hops),
        ("ircot", lambda hops: hops + 1),
    ],
)
def test_each_form_searches_as_its_method_does(form, searches):
    transcripts, questions = shown(form)
    for transcript in transcripts:
        hops = question_of(transcript, questions).metadata["hops"]
        assert len(text_of(transcript, "observation")) == searches(hops)


@pytest.mark.parametrize("form", ["react", "ircot"])
def test_a_program_that_searches_writes_no_name_that_it_has_not_seen(form):
    transcripts, _ = shown(form)
    for transcript in transcripts:
        seen = ""
        for kind, start, stop in transcript.spans:
            text = CODEC.decode(transcript.token_ids[start:stop])
            if kind == "action":
                assert {name for name in NAMES if name in text} <= {name for name in NAMES if name in seen}
            seen += text


def test_the_first_query_is_the_question_and_later_ones_are_the_thoughts():
    transcripts, questions = shown("ircot")
    for transcript in transcripts:
        first, *thoughts, _ = text_of(transcript, "action")
        assert parse_turn(first)[1] == question_of(transcript, questions).text
        for text in thoughts:
            assert text.removeprefix("<think> ").partition(" </think>")[0] == parse_turn(text)[1]


def test_a_chain_of_thought_states_every_fact():
    transcripts, questions = shown("cot", 12)
    for transcript in transcripts:
        (text,) = text_of(transcript, "action")
        for _, relation, object in chain_of(question_of(transcript, questions)):
            assert f"The {relation} is {object}." in text


@pytest.mark.parametrize("num_envs", [1, 7, 30])
def test_how_many_play_at_a_time_changes_nothing(num_envs):
    one, other = (shown("react", 20, num_envs=n)[0] for n in (5, num_envs))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        assert a.spans == b.spans


def test_a_step_that_no_document_shows_ends_in_unknown():
    question = Question("q", "Who is the mayor of the birthplace of A?", ("C",), {"chain": [["A", "x", "B"]]})
    policy = FORMS["ircot"].policy
    document = "<information>The mayor of Port Sol is Mara Velden.</information>"
    assert parse_turn(policy.act(question, [])) == ("search", question.text)
    guess = policy.act(question, [document])
    assert parse_turn(guess) == ("search", "The x of A is Mara Velden.")
    assert parse_turn(policy.act(question, [document, document])) == ("answer", "unknown")


def test_only_what_was_rewarded_is_kept():
    class SometimesRight:
        def act(self, question, observations):
            return f"<answer> {question.answers[0] if question.metadata['hops'] == 1 else 'unknown'} </answer>"

    envs = FORMS["direct"].make_envs(CONFIG, CODEC, 4)
    kept = demonstrate(envs, SometimesRight(), range(30))
    expected = [q.text for q in envs.task.questions[:30] if q.metadata["hops"] == 1]
    assert [question_of(t, envs.task.questions).text for t in kept] == expected


def test_demonstrations_that_do_not_fit_are_an_error():
    with pytest.raises(OptionError, match="got none for 10 questions; do: raise max_turn_tokens"):
        shown("react", 10, replace(CONFIG, max_turn_tokens=4))


def test_questions_without_a_chain_are_only_for_the_forms_that_need_none():
    documents = [Document("d", "Port Sol", "Port Sol has a harbour.")]
    envs = SearchVectorEnv(
        1, questions=[Question("q1", "what?", ("harbour",))], retriever=load("bm25", documents), codec="byte"
    )
    assert len(demonstrate(envs, FORMS["search-once"].policy, [0])) == 1
    for form in ("cot", "ircot"):
        with pytest.raises(OptionError, match="a chain of facts, got 'q1' without one"):
            demonstrate(envs, FORMS[form].policy, [0])
    broken = Question("q2", "?", ("x",), {"chain": [["A", "r", "B"], ["C", "r", "D"]]})
    with pytest.raises(OptionError, match="got 'q2'"):
        chain_of(broken)


def test_every_form_says_what_it_is():
    assert make_envs is FORMS["react"].make_envs
    assert all(form.about for form in FORMS.values())
