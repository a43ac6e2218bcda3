"""Self-RAG: the critic is right, scores are what the equations say, and branches are episodes of the environment."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.baselines import self_rag
from agents.baselines.reflection import Critique, Writer, demonstrate, first_turn, search, write_segment
from agents.baselines.segments import Judgement, ReflectionReader, Weights, answer_questions, segment_score
from agents.baselines.self_rag import SelfRAGConfig
from agents.checkpoint import load_policy
from agents.evaluate import evaluate
from agents.generation import SampledTurn
from agents.supervised import FitConfig
from agents.tasks import EnvConfig, make_envs
from search_gym import Document, Question, tinywiki
from search_gym.codec import ByteCodec
from search_gym.errors import OptionError, RetrievalError
from search_gym.tags import parse_turn
from search_gym.tinywiki import read_facts
from tests.real_text import real_text  # noqa: F401

CODEC = tinywiki.codec()
ENV = EnvConfig(split="validation", kinds=("1-hop", "2-hop"), top_k=3)
TWO_HOPS = Question(
    "q",
    "Who is the mayor of the birthplace of Mara Velden?",
    ("Lulo Zesolt",),
    {"chain": [["Mara Velden", "birthplace", "Port Sol"], ["Port Sol", "mayor", "Lulo Zesolt"]]},
)
BIRTHPLACE = Document("1", "Mara Velden", "Port Sol is the birthplace of Mara Velden.")
MAYOR = Document("2", "Port Sol", "The mayor of Port Sol is Lulo Zesolt.")
OTHER = Document("3", "Port Sol", "The country of Port Sol is Stovan Tunonia.")


@pytest.fixture(scope="module")
def tiny():
    return load_policy("tiny")[0].model


@pytest.fixture(scope="module")
def task():
    return make_envs(ENV, CODEC, 1).task


@pytest.fixture(scope="module")
def reflecting(tmp_path_factory):
    """A policy that writes the form, whether or not it judges well."""
    config = SelfRAGConfig(
        env=replace(ENV, split="train"),
        demonstrations=200,
        episodes_per_question=1,
        fit=FitConfig(epochs=3),
        run_dir=tmp_path_factory.mktemp("self-rag"),
    )
    return self_rag.train(config).model


def test_the_critic_asks_for_one_step_after_the_other():
    writer = Writer(TWO_HOPS)
    assert [writer.shows(document) for document in (BIRTHPLACE, MAYOR, OTHER)] == [True, False, False]
    assert writer.read(MAYOR) == (
        "birthplace of Mara Velden is unknown",
        Critique(False, False, False, True),
        "unknown",
    )
    assert writer.read(BIRTHPLACE) == (
        "birthplace of Mara Velden is Port Sol",
        Critique(True, True, False, True),
        "Port Sol",
    )
    assert [writer.shows(document) for document in (BIRTHPLACE, MAYOR, OTHER)] == [False, True, False]
    assert writer.read(OTHER)[:2] == ("mayor of Port Sol is unknown", Critique(False, False, True, True))
    assert writer.read(None).critique == Critique(False, False, True, True)
    last = writer.read(MAYOR)
    assert last == ("mayor of Port Sol is Lulo Zesolt", Critique(True, True, True, False), "Lulo Zesolt")
    assert write_segment(last) == (
        "<think> yes mayor of Port Sol is Lulo Zesolt yes yes no </think> <answer> Lulo Zesolt </answer>"
    )


def test_without_a_chain_a_document_is_relevant_when_it_holds_the_answer():
    writer = Writer(Question("q", "what?", ("The Gold", "other")))
    assert not writer.shows(Document("d", "Title", "nothing"))
    assert writer.read(Document("d", "Title", "nothing")).critique == Critique(False, False, True, True)
    assert writer.read(Document("d", "Gold", "or so")) == ("The Gold", Critique(True, True, True, False), "The Gold")


def test_annotated_episodes_are_right_and_annotated_right(task):
    transcripts = demonstrate(task, range(60), seed=0)
    assert len(transcripts) > 30
    by_prompt = {tinywiki.prompt(q.text).strip(): q for q in task.questions[:60]}
    shares = []
    for transcript in transcripts:
        texts = [(s.kind, CODEC.decode(transcript.token_ids[s.start : s.stop])) for s in transcript.spans]
        question = by_prompt[texts[0][1].strip()]
        chain = [tuple(fact) for fact in question.metadata["chain"]]
        assert texts[1][1] == first_turn(question)
        step = 0
        for (_, observation), (_, action) in zip(texts[2::2], texts[3::2], strict=True):
            (fact,) = read_facts(observation) or [None]  # one document a search; an alias states no fact
            words = action.partition(" </think>")[0].split()
            judgements = [words[1], *words[-3:]]
            is_shown, is_last = fact == chain[step], step == len(chain) - 1
            expected = (is_shown, is_shown, is_last, not (is_shown and is_last))
            assert judgements == ["yes" if judgement else "no" for judgement in expected]
            step += is_shown
            shares.append(is_shown)
        assert parse_turn(texts[-1][1])[1] in question.answers
        assert step == len(chain)
    assert 0.3 < np.mean(shares) < 0.9  # the critic sees both


def test_failing_searches_and_impossible_episodes_are_errors(task):
    class Failing:
        def search(self, queries, k):
            raise RuntimeError("down")

    with pytest.raises(RetrievalError, match="down"):
        search(replace(task, retriever=Failing(), on_retrieval_error="observe"), ["x"])
    assert search(task, []) == []
    with pytest.raises(OptionError, match="annotated episodes that end right, got none of 5"):
        demonstrate(replace(task, limits=replace(task.limits, max_turns=0)), range(5), seed=0)


@given(
    logprob=st.floats(-20, 0),
    judgement=st.tuples(*[st.floats(0, 1)] * 3),
    weights=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_the_score_is_equation_3(logprob, judgement, weights):
    expected = math.exp(logprob) + sum(w * s for w, s in zip(weights, judgement, strict=True))
    assert segment_score(logprob, Judgement(*judgement), Weights(*weights)) == pytest.approx(expected)


def slow_judgement(model, context, turn_ids):
    """Three forward passes, each up to one judgement, and the softmax over "yes" and "no" there."""
    yes, no = CODEC.encode("yes")[0], CODEC.encode("no")[0]
    end = turn_ids.index(CODEC.encode("</think>")[0])
    found = [i for i, token in enumerate(turn_ids[:end]) if token in (yes, no)]
    shares = []
    for place in (found[0], found[-3], found[-2]):
        ids = torch.tensor([[*context, *turn_ids[:place]]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1].double()
        shares.append(float(logits[[yes, no]].softmax(-1)[0]))
    return shares


def test_judgements_are_what_the_policy_holds_of_yes_against_no(tiny, task):
    reader = ReflectionReader(tiny, CODEC)
    texts = (
        "<think> yes mayor of Port Sol is unknown no yes yes </think> <search> yes no </search>",
        "<think> no Lulo Zesolt yes no no </think> <answer> no </answer>",
        "<think> no yes no </think> <answer> no </answer>",
        "<answer> yes no yes no yes </answer>",
    )
    contexts = [CODEC.encode(f"Question: {q.text}") for q in task.questions[:4]]
    ids = [CODEC.encode(text) for text in texts]
    turns = [SampledTurn(row, np.zeros(len(row), dtype=np.float32)) for row in ids]
    assert [len(reader.places(row.tolist())) for row in ids] == [4, 4, 0, 4]
    found = reader.judge(contexts, turns)
    for i in (0, 1):
        assert found[i] == pytest.approx(slow_judgement(tiny, contexts[i].tolist(), ids[i].tolist()), abs=1e-5)
    assert found[2] == (0.0, 0.0, 0.0)


def test_a_vocabulary_without_the_words_is_refused(tiny):
    with pytest.raises(OptionError, match='the tokens "yes" and "no", got one without'):
        ReflectionReader(tiny, ByteCodec())


def test_with_one_document_it_is_the_environment_played_greedily(tiny, reflecting):
    one = replace(ENV, top_k=1)
    envs = make_envs(one, CODEC, 12)
    for model in (tiny, reflecting):
        expected = evaluate(model, envs, range(24)).rollouts
        answered = answer_questions(model, envs.task, range(24), Weights(), wave=7)
        for (rollout, tokens), other in zip(answered, expected, strict=True):
            np.testing.assert_array_equal(rollout.token_ids, other.token_ids)
            np.testing.assert_allclose(rollout.logprobs, other.logprobs, atol=1e-4)
            for name in ("turns", "spans", "num_searches", "reward", "terminated", "truncated"):
                assert getattr(rollout, name) == getattr(other, name)
            assert tokens == rollout.loss_mask.sum()


def test_the_best_branch_goes_on(reflecting, task):
    """The first search by hand: every document in an episode of its own, and the scores compared."""
    weights = Weights(1.0, 2.0, 0.5)
    answered = answer_questions(reflecting, task, range(12), weights)
    reader = ReflectionReader(reflecting, CODEC)
    compared = 0
    for index, (rollout, tokens) in enumerate(answered):
        assert tokens > rollout.loss_mask.sum() or rollout.num_searches == 0
        if rollout.num_searches == 0:
            continue
        actions = [rollout.token_ids[s.start : s.stop] for s in rollout.spans if s.kind == "action"]
        observations = [rollout.token_ids[s.start : s.stop] for s in rollout.spans if s.kind == "observation"]
        candidates = {}
        for document in search(task, [rollout.turns[0].content])[0]:
            episode = task.episode(index)
            episode.start()
            episode.finish(episode.begin(actions[0]), [document])
            envs = make_envs(replace(ENV, top_k=1), CODEC, 1, retriever=_Always(document), corpus=None)
            (plain,) = evaluate(reflecting, envs, [index]).rollouts
            context = episode.transcript.token_ids
            turn = next(plain.token_ids[s.start : s.stop] for s in plain.spans if s.start == len(context))
            logprobs = plain.logprobs[len(actions[0]) : len(actions[0]) + len(turn)]
            (judgement,) = reader.judge([context], [SampledTurn(turn, logprobs)])
            candidates[tuple(context[-len(observations[0]) :])] = segment_score(
                float(logprobs.mean()), judgement, weights
            )
        best = max(candidates, key=candidates.__getitem__)
        assert candidates[tuple(observations[0])] == pytest.approx(candidates[best], abs=1e-4)
        compared += 1
    assert compared > 5


class _Always:
    def __init__(self, document):
        self.document = document

    def search(self, queries, k):
        return [[self.document] for _ in queries]


def test_a_run_trains_answers_and_writes_what_came_of_it(tmp_path):
    config = SelfRAGConfig(
        env=replace(ENV, split="train"),
        demonstrations=16,
        episodes_per_question=2,
        fit=FitConfig(epochs=1),
        eval_questions=8,
        run_dir=tmp_path / "a",
    )
    summary = self_rag.main(config, Console(quiet=True))
    assert json.loads((tmp_path / "a/summary.json").read_text()) == summary
    assert summary["num_questions"] == 8
    # The checkpoint alone gives the same answers.
    again = replace(config, model=str(tmp_path / "a/checkpoint"), demonstrations=0, run_dir=tmp_path / "b")
    assert self_rag.main(again, Console(quiet=True))["metrics"] == summary["metrics"]
    with pytest.raises(OptionError, match="demonstrations >= 1 to train on, got 0"):
        self_rag.train(again)
    with pytest.raises(OptionError, match="eval_questions >= 1, got 0"):
        self_rag.main(replace(config, eval_questions=0))


def test_any_causal_language_model_and_any_questions(real_text):  # noqa: F811
    path, env = real_text
    config = SelfRAGConfig(
        env=env,
        model=str(path / "model"),
        eval_split="all",
        fit=FitConfig(epochs=2, batch_size=4, learning_rate=1e-2),
        run_dir=path / "run",
    )
    summary = self_rag.main(config, Console(quiet=True))
    assert summary["num_questions"] == 4
    assert set(summary["metrics"]["all"]) >= {"em", "searches", "sampled_tokens"}
    rows = [json.loads(line) for line in (path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"]
