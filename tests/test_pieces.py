"""Functions of the user's in a trainer: right ones change nothing but rounding, wrong ones change what they should."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from agents import grpo, losses, ppo, rloo
from agents.pieces import PieceError, Pieces
from agents.tasks import EnvConfig, make_envs
from search_gym import tinywiki
from search_gym.errors import OptionError, RetrievalError, SearchGymError, UnknownNameError
from search_gym.exercises.catalogue import EXERCISES, SLOTS
from tests.planted import FOLDER, plant, solution

SMALL = {"updates": 2, "rollouts_per_update": 16, "minibatch_size": 8}
TRAINERS = {"agents.ppo": (ppo, ppo.PPOConfig), "agents.grpo": (grpo, grpo.GRPOConfig)}


def train(module, config):
    module.train(config)
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith("time/") and k != "alarms"} for row in rows]
    return kept, load_file(config.run_dir / "checkpoint/model.safetensors")


@pytest.fixture(scope="module")
def built_in(tmp_path_factory):
    """What the trainers do without any function of the user's."""
    folder = tmp_path_factory.mktemp("built-in")
    return {name: train(module, kind(run_dir=folder / name, **SMALL)) for name, (module, kind) in TRAINERS.items()}


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.name)
def test_a_solution_trains_as_the_built_in_function_does(exercise, built_in, tmp_path):
    module, kind = TRAINERS[exercise.trainer]
    path = solution(exercise)
    rows, weights = train(module, kind(run_dir=tmp_path, use=(f"{path}:{exercise.slot}",), **SMALL))
    assert (tmp_path / "used" / path.name).read_bytes() == path.read_bytes()
    if exercise.name == "design":
        return  # a better retriever than the built-in one finds other documents
    expected, expected_weights = built_in[exercise.trainer]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[name], rtol=1e-3, atol=1e-4)


def first_row(tmp_path, mistake, slot, module=ppo, kind=ppo.PPOConfig):
    path = plant(FOLDER / "mistakes" / mistake, tmp_path)
    return train(module, kind(run_dir=tmp_path / "run", use=(f"{path}:{slot}",), **{**SMALL, "updates": 1}))[0][0]


def test_a_mask_with_documents_in_it_trains_on_documents(built_in, tmp_path):
    row = first_row(tmp_path, "tags/retrieved_tokens_too.py", "loss_mask")
    right = built_in["agents.ppo"][0][0]
    assert row["rollout/reward"] == right["rollout/reward"]
    assert abs(row["loss/entropy"] - right["loss/entropy"]) > 0.1
    assert row["loss/logprob_mismatch_max"] < 1e-3


def test_a_reward_that_pays_searches_is_what_is_earned(built_in, tmp_path):
    row = first_row(tmp_path, "reward_hacking/pays_searches.py", "reward")
    right = built_in["agents.ppo"][0][0]
    assert row["rollout/em"] == right["rollout/em"]
    assert row["rollout/searches"] == right["rollout/searches"]
    searches = 0.1 * right["rollout/searches"]
    assert right["rollout/reward"] + 0.9 * searches < row["rollout/reward"] <= right["rollout/reward"] + 1.2 * searches


def test_a_wrong_gradient_is_followed(built_in, tmp_path):
    row = first_row(tmp_path, "clipped_loss/wrong_sign.py", "clipped_loss", module=grpo, kind=grpo.GRPOConfig)
    right = built_in["agents.grpo"][0][0]
    assert row["rollout/reward"] == right["rollout/reward"]
    assert row["loss/policy"] == pytest.approx(-right["loss/policy"], abs=1e-2)


def test_a_retriever_without_idf_finds_other_documents(tmp_path):
    codec = tinywiki.codec()
    found = []
    for path in (FOLDER / "solutions/bm25.py", plant(FOLDER / "mistakes/bm25/no_idf.py", tmp_path)):
        envs = make_envs(EnvConfig(), codec, 2)
        builtin = envs.task.retriever
        Pieces([f"{path}:bm25_scores"]).install(envs)
        queries = [question.text for question in envs.task.questions[:20]]
        ours, theirs = envs.task.retriever.search(queries, 3), builtin.search(queries, 3)
        assert envs.task.retriever.search(queries, 3) == ours
        found.append(
            [
                [d.score for d in mine] == pytest.approx([d.score for d in theirs_too], rel=1e-5)
                for mine, theirs_too in zip(ours, theirs, strict=True)
            ]
        )
    assert all(found[0])
    assert not any(found[1])


def test_a_warning_becomes_an_alarm_of_the_run(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\n"
        "def first_warning(metrics):\n"
        "    assert np.isnan(metrics.get('nothing', np.nan)).all()\n"
        "    assert len(metrics['update']) == len(metrics['loss/entropy'])\n"
        "    return 1 if len(metrics['update']) > 1 else None\n"
    )
    ppo.train(ppo.PPOConfig(run_dir=tmp_path / "run", use=(f"{path}:first_warning",), **{**SMALL, "updates": 3}))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    alarms = [[alarm["message"] for alarm in row.get("alarms", []) if alarm["name"] == "your warning"] for row in rows]
    assert alarms == [[], ["mine.py says that a collapse begins here"], []]


@pytest.mark.parametrize(
    ("module", "kind", "slot"), [(ppo, ppo.PPOConfig, "group_advantages"), (rloo, rloo.RLOOConfig, "clipped_loss")]
)
def test_a_function_that_an_algorithm_never_calls_is_refused(module, kind, slot, tmp_path):
    file = {"group_advantages": "grpo_baseline", "clipped_loss": "clipped_loss"}[slot]
    config = kind(run_dir=tmp_path, use=(f"{FOLDER}/solutions/{file}.py:{slot}",), **SMALL)
    with pytest.raises(OptionError, match=f"never called '{slot}'"):
        module.train(config)


FUNCTIONS = """
import numpy as np
def gae(rewards, values, loss_mask, gamma, lam):
    {gae}
def reward(answer, answers, turns, text):
    return "one"
def loss_mask(spans, length):
    return np.ones(length, dtype=bool)
def search(queries, documents, k):
    return [[0, 0]]
def bm25_scores(query, documents, k1, b):
    return np.zeros(3)
not_a_function = 1
"""


@pytest.mark.parametrize(
    ("gae", "words"),
    [
        ("return rewards / rewards.nothing", "gae raised AttributeError: .* in line 4"),
        ("return rewards", "expected gae to return a tuple of two, got ndarray"),
        ("return rewards[:1], values", r"expected gae to give \(2, 3\) numbers, got shape \(1, 3\)"),
        ("return 'a', 'b'", r"expected gae to give \(2, 3\) numbers, got str"),
    ],
)
def test_what_a_function_does_wrong_is_told(gae, words, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS.format(gae=gae))
    pieces = Pieces([f"{path}:gae"])
    x = torch.zeros(2, 3)
    with pytest.raises(PieceError, match=f"mine.py: {words}"):
        pieces.gae(x, x, x.bool(), 1.0, 1.0)
    assert pieces.calls["gae"] == 1


def test_what_functions_return_is_checked_where_it_is_used(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS.format(gae="pass"))
    config = ppo.PPOConfig(run_dir=tmp_path / "run", **SMALL)
    for slot, error, words in (
        ("reward", PieceError, "expected reward to give a number, got 'one'"),
        ("loss_mask", PieceError, "the first of them False"),
        ("search", RetrievalError, "lists of at most 1 different indices"),
        ("bm25_scores", RetrievalError, "expected a finite score for each of"),
    ):
        with pytest.raises(error, match=words):
            ppo.train(replace(config, use=(f"{path}:{slot}",)))


def test_specs_that_name_nothing_are_told(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS.format(gae="pass"))
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name")
    for specs, error, words in (
        ([f"{path}:advantages"], UnknownNameError, "among the slots loss_mask, reward"),
        ([f"{path}"], UnknownNameError, "expected FILE.py:FUNCTION"),
        ([f"{tmp_path / 'no.py'}:gae"], UnknownNameError, "which does not exist"),
        ([f"gae={path}:nothing"], UnknownNameError, "expected a function 'nothing'"),
        ([f"gae={path}:not_a_function"], UnknownNameError, "expected a function 'not_a_function'"),
        ([f"{path}:gae", f"gae={path}:reward"], OptionError, "got two"),
        ([f"{broken}:gae"], PieceError, "could not be imported: ModuleNotFoundError"),
    ):
        with pytest.raises(error, match=words):
            Pieces(specs)
    with pytest.raises(SearchGymError, match="expected one retriever"):
        Pieces([f"{path}:search", f"{path}:bm25_scores"]).install(make_envs(EnvConfig(), tinywiki.codec(), 1))


def test_without_functions_of_the_users_everything_is_the_built_in():
    pieces = Pieces()
    assert not any(slot in pieces for slot in SLOTS)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False, True, True, False, True], [True, False, False, True, False]])
    for ours, theirs in zip(pieces.gae(x, -x, mask, 0.9, 0.8), losses.gae(x, -x, mask, 0.9, 0.8), strict=True):
        assert torch.equal(ours, theirs)
    pieces.check_used("PPO")
    assert not pieces.calls


def test_a_loss_has_the_gradient_that_its_function_says(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def clipped_loss(x, old, a, mask, w, low, high):\n    return 7.0, 2 * w + mask")
    pieces = Pieces([f"{path}:clipped_loss"])
    x = torch.zeros(2, 3, requires_grad=True)
    mask, weights = torch.tensor([[True, False, True], [False, True, True]]), torch.full((2, 3), 0.25)
    loss, stats = pieces.ppo_policy_loss(x, x.detach(), x.detach(), mask, 0.2, 0.2, weights=weights)
    (3 * loss).backward()
    assert loss.item() == 7.0
    assert torch.equal(x.grad, 3 * (2 * weights + mask))
    assert set(stats) == {"clip_fraction", "approx_kl", "ratio_mean", "ratio_max"}
