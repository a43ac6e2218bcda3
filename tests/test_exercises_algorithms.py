"""Exercises 5 to 8: what the checks hold to be right is what the trainers, the study and the retrievers compute."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import losses
from benchmarks import exercise_runs
from benchmarks.collapse.definition import collapse_update
from benchmarks.collapse.records import load as load_study
from search_gym import retrievers, tinywiki
from search_gym.exercises.catalogue import load
from search_gym.exercises.checking import Caller
from search_gym.exercises.material.clipped_loss import checks as clipped_loss
from search_gym.exercises.material.clipped_loss.wrong_losses import WRONG_LOSSES
from search_gym.exercises.material.design import exam
from search_gym.exercises.material.diagnose import checks as diagnose
from search_gym.exercises.material.diagnose import definitions
from search_gym.exercises.material.grpo_baseline import checks as grpo_baseline
from search_gym.exercises.material.grpo_baseline.advantages import WRONG_ADVANTAGES
from search_gym.exercises.material.grpo_baseline.advantages import reference as group_advantages
from search_gym.exercises.suspects import compare

STUDY = Path(__file__).parents[1] / "benchmarks/results/collapse"
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS, st.sampled_from(["numbers", "garbage"]))
@settings(max_examples=60, deadline=None)
def test_the_clipped_loss_is_that_of_the_trainer(seed, outside):
    case = clipped_loss.make_batch(np.random.default_rng(seed), outside=outside)
    logprobs, *rest, low, high = (torch.as_tensor(x) if isinstance(x, np.ndarray) else x for x in case)
    old, advantages, mask, weights = rest
    logprobs.requires_grad_()
    loss, stats = losses.ppo_policy_loss(logprobs, old, advantages, mask, low, high, weights=weights)
    loss.backward()
    expected, gradient = clipped_loss.loss_of(*case)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(logprobs.grad.numpy(), gradient, rtol=1e-6, atol=1e-9)
    assert stats["clip_fraction"].item() == pytest.approx(clipped_loss.clip_fraction_of(*case), abs=1e-6)


@given(SEEDS, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_group_advantages_are_those_of_the_trainer(seed, normalize, leave_one_out):
    rewards, ids = grpo_baseline.make_groups(np.random.default_rng(seed))
    found = losses.group_advantages(
        torch.as_tensor(rewards), torch.as_tensor(ids), normalize_std=normalize, leave_one_out=leave_one_out
    )
    np.testing.assert_allclose(group_advantages(rewards, ids, normalize, leave_one_out), found.numpy(), atol=1e-7)


@given(SEEDS, st.sampled_from(grpo_baseline.ALGORITHMS))
@settings(max_examples=60, deadline=None)
def test_coefficients_are_the_gradient_of_the_first_step(seed, algorithm):
    rng = np.random.default_rng(seed)
    rewards, ids = grpo_baseline.make_groups(rng, least=2)
    mask = rng.random((len(ids), 5)) < 0.6
    options = {"grpo": (True, False), "rloo": (False, True), "dr_grpo": (False, False)}[algorithm]
    aggregation = {"grpo": "sequence-mean", "rloo": "token-mean", "dr_grpo": "sequence-sum"}[algorithm]
    sampled = torch.as_tensor(mask)
    advantages = losses.spread(torch.as_tensor(group_advantages(rewards, ids, *options)), sampled)
    logprobs = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    weights = losses.token_weights(sampled, aggregation, max_tokens=7).double()
    loss, _ = losses.ppo_policy_loss(logprobs, logprobs.detach(), advantages, sampled, 0.2, 0.2, weights=weights)
    loss.backward()
    found = grpo_baseline.coefficients(rewards, ids, mask, algorithm, 7)
    np.testing.assert_allclose(-logprobs.grad.numpy(), found, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("text", [*WRONG_LOSSES, *WRONG_ADVANTAGES])
def test_known_mistakes_are_wrong(text):
    """A suspect that is right for every input could never be named."""
    rng = np.random.default_rng(0)
    if text in WRONG_LOSSES:
        cases = [clipped_loss.make_batch(rng) for _ in range(40)]
        different = [
            not np.allclose(np.hstack([a, b.ravel()]), np.hstack([c, d.ravel()]))
            for (a, b), (c, d) in ((WRONG_LOSSES[text](*case), clipped_loss.loss_of(*case)) for case in cases)
        ]
    else:
        options = [(normalize, leave) for normalize in (False, True) for leave in (False, True)]
        different = [
            not np.allclose(WRONG_ADVANTAGES[text](*case), group_advantages(*case), rtol=1e-7, atol=1e-9)
            for _ in range(10)
            for case in ((*grpo_baseline.make_groups(rng), *some) for some in options)
        ]
    assert any(different)


@given(st.lists(st.integers(0, 120).map(lambda n: n / 120), min_size=1, max_size=60))
def test_a_collapse_is_what_the_study_calls_one(em):
    expected = collapse_update(em)
    assert definitions.collapse(np.array(em)) == (None if expected is None else expected - 1)


@pytest.mark.skipif(not (STUDY / "table.parquet").exists(), reason="needs the results of the collapse study")
def test_the_runs_can_be_made_again(tmp_path):
    exercise_runs.write(STUDY, tmp_path)
    seen, unseen = (exercise_runs.read(tmp_path / name) for name in (exercise_runs.SEEN, exercise_runs.UNSEEN))
    assert not {run["name"] for run in seen} & {run["name"] for run in unseen}
    outcomes = {f"{r.cell}, seed {r.seed}": r.outcome.onset for r in load_study(STUDY).records}
    for run in [*seen, *unseen]:  # rounding changes no outcome
        assert collapse_update(run["metrics"]["rollout/em"]) == outcomes[run["name"]]
    for runs in (seen, unseen):
        assert {run["cause"] for run in runs} == {*diagnose.CAUSES, None}


def test_the_runs_of_the_exercise():
    folder = load("diagnose").folder
    assert sum(path.stat().st_size for path in folder.glob("*.gz")) < 300_000
    seen, unseen = (exercise_runs.read(folder / name) for name in (exercise_runs.SEEN, exercise_runs.UNSEEN))
    assert not {run["name"] for run in seen} & {run["name"] for run in unseen}
    page = load("diagnose").page
    assert exercise_runs.with_chart(page, seen) == page
    for run in [*seen, *unseen]:
        assert {len(values) for values in run["metrics"].values()} == {len(run["metrics"]["rollout/em"])}


def test_the_exam_has_new_names_in_a_new_order_and_can_be_passed():
    found = exam.make_exam(np.random.default_rng(3), questions=10)
    known = {word for entry in tinywiki.vocabulary() for word in entry.split()}
    assert not {word for document in found.documents for word in document.title.split()} & known
    assert [d.doc_id for d in found.documents] != sorted(d.doc_id for d in found.documents)
    position = {document.doc_id: i for i, document in enumerate(found.documents)}
    perfect = [
        [position[doc_id] for doc_id in question.metadata["supporting_ids"]]
        for questions in found.questions.values()
        for question in questions
    ]
    assert set(found.scores(perfect).values()) == {1.0}
    assert found.scores([[] for _ in perfect])["2-hop"] == 0.0


def test_the_exams_bm25_is_the_retriever():
    found = exam.make_exam(np.random.default_rng(4), questions=10)
    bm25 = retrievers.load("bm25", found.documents)
    theirs = [[document.doc_id for document in some] for some in bm25.search(found.queries, exam.TOP_K)]
    mine = [[found.documents[i].doc_id for i in some] for some in exam.bm25(found.queries, found.pairs, exam.TOP_K)]
    same = [a == b for a, b in zip(mine, theirs, strict=True)]
    assert np.mean(same) > 0.9  # float32 there: documents of nearly the same score may change places


def test_the_page_tells_the_scores_of_bm25():
    exams = [exam.make_exam(np.random.default_rng(seed), 40) for seed in range(4)]
    scores = [some.scores(exam.bm25(some.queries, some.pairs, exam.TOP_K)) for some in exams]
    rows = dict(re.findall(r"^\| ([\w-]+) \|.*\| (\d\.\d\d) \|$", load("design").page, flags=re.MULTILINE))
    for kind in exam.KINDS:
        assert float(rows[kind]) == pytest.approx(np.mean([some[kind] for some in scores]), abs=0.006)
    overall = np.mean([value for some in scores for value in some.values()])
    assert f"BM25 has {overall:.2f}" in load("design").page


def test_a_misconception_is_named(tmp_path):
    (tmp_path / "twice.py").write_text("def twice(x):\n    return x + 1\n")
    with Caller(tmp_path / "twice.py") as call:
        message = compare(
            call,
            "twice",
            [(np.array([3.0, 1.0]),), (np.array([2.0]),), (np.array([1.0]),)],
            lambda x: 2 * x,
            arguments=("x",),
            suspects={"one more, not twice.": lambda x: x + 1, "three times.": lambda x: 3 * x},
        )
    # The smallest input is shown.
    assert message.startswith("it looks like this mistake: one more, not twice. For example, twice(x=[2")
    assert "expected 4" in message
