"""What every algorithm keeps to, whatever it computes: each test runs for all that ``algorithms.names()`` finds."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from probes import PROBES, make_base, probe_config

from agents import algorithms, losses
from agents.checkpoint import load_policy
from agents.config import ComputeConfig, OptimizerConfig, SaveConfig, TrainConfig, named_preset, run_command
from agents.evaluate import evaluate
from agents.generation import CachedGenerator
from agents.learner import Learner, learning_rate_factor
from agents.rollout import RolloutBatch, collate, collect
from agents.tasks import EnvConfig
from agents.training_state import read_state
from search_gym.errors import OptionError, UnknownNameError

CONSTANT, IN_PROMPT, ONE_SEARCH, _ = PROBES
NAMES = algorithms.names()
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("algorithms") / "base")


@pytest.fixture(params=NAMES)
def algorithm(request: pytest.FixtureRequest) -> ModuleType:
    return algorithms.load(request.param)


def train(algorithm: ModuleType, base: Path, run_dir: Path, probe: Any = IN_PROMPT, **options: Any) -> Rows:
    """Rows of metrics of a short run."""
    config = probe_config(algorithm.PRESETS["default"], base, run_dir, **options)
    algorithm.train(config, make_envs=probe.make_envs)
    return rows_of(run_dir)


def rows_of(run_dir: Path) -> Rows:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


SMALL = {"updates": 2, "rollouts_per_update": 16, "minibatch_size": 8}


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(
    algorithm: ModuleType, base: Path, tmp_path: Path
) -> None:
    one, same, other = (
        untimed(train(algorithm, base, tmp_path / str(run), **SMALL, kl_coef=0.1, seed=seed))
        for run, seed in enumerate((3, 3, 4))
    )
    assert len(one) == 2
    assert one == same
    assert one != other


def test_a_run_is_complete_finite_and_can_be_loaded(algorithm: ModuleType, base: Path, tmp_path: Path) -> None:
    config = probe_config(algorithm.PRESETS["default"], base, tmp_path / "run", updates=3, kl_coef=0.01)
    policy = algorithm.train(config, make_envs=IN_PROMPT.make_envs)
    run_dir = config.run_dir
    written = json.loads((run_dir / "config.json").read_text())
    assert written["updates"] == 3
    assert written["env"]["max_turns"] == config.env.max_turns
    rows = rows_of(run_dir)
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert {key for row in rows for key in row} == set(rows[0])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {key.split("/")[0] for key in rows[0]} == {"update", "env", "rollout", "loss", "time"}
    assert max(row["loss/logprob_mismatch_max"] for row in rows) < 1e-4

    state = read_state(run_dir)
    assert state is not None
    assert state.update == 3
    loaded, codec = load_policy(run_dir / "checkpoint")
    expected = policy.state_dict()
    restored = {name: weight for name, weight in loaded.state_dict().items() if name in expected}
    assert restored.keys() == expected.keys()
    for name, weight in restored.items():
        assert torch.equal(weight, expected[name]), name
    envs = IN_PROMPT.make_envs(EnvConfig(), codec, 4)
    evaluation = evaluate(loaded.model, envs, range(4))
    assert 0 <= evaluation.estimates["all"]["em"].mean <= 1


@pytest.mark.parametrize("kind", ["k3-loss", "k1-reward"])
def test_a_large_kl_keeps_the_policy_where_it_was(algorithm: ModuleType, base: Path, tmp_path: Path, kind: str) -> None:
    """With a large weight the KL outweighs any reward in [0, 1]; with a tiny one the policy is free to move."""
    distance = {}
    for weight in (1e-6, 100.0):
        options = {"updates": 10, "rollouts_per_update": 32, "minibatch_size": 16, "learning_rate": 1e-3}
        rows = train(algorithm, base, tmp_path / str(weight), CONSTANT, **options, kl=kind, kl_coef=weight)
        distance[weight] = rows[-1]["loss/kl"]
    assert distance[100.0] < 0.2 * distance[1e-6]


def test_the_entropy_bonus_raises_entropy(algorithm: ModuleType, base: Path, tmp_path: Path) -> None:
    """Entropies are compared as ratios: each algorithm sums them with the weights of its own loss."""
    first, last = {}, {}
    for weight in (0.0, 1.0):
        options = {"updates": 8, "rollouts_per_update": 32, "minibatch_size": 16, "entropy_coef": weight}
        rows = train(algorithm, base, tmp_path / str(weight), **options)
        first[weight], last[weight] = (row["loss/entropy"] for row in (rows[0], rows[-1]))
    # The model chooses among four words at first, and the bonus pays for all of the vocabulary.
    assert last[0.0] < first[0.0]
    assert last[1.0] > 1.2 * first[1.0]


def test_pieces_and_waves_change_nothing_but_rounding(algorithm: ModuleType, base: Path, tmp_path: Path) -> None:
    """One update of two optimiser steps, its work cut up in other ways.

    Log-probabilities of up to 6 nats carry float32 errors of about 1e-6, and a wave of other episodes pads and batches
    differently. Adam divides a gradient by its own size plus 1e-5, so after one step of rate 1e-3 an error of 1e-8 in a
    vanishing gradient has become one of 1e-6 in a weight. 1e-3 of the numbers themselves, and 1e-4 where they cancel,
    is far above that and far below what a wrong weight or mask of one episode in 32 would do.
    """
    options = {"updates": 1, "minibatch_size": 32, "learning_rate": 1e-3, "kl_coef": 0.1}
    whole = untimed(train(algorithm, base, tmp_path / "whole", ONE_SEARCH, **options))
    assert len(whole) == 1
    for name, compute in (
        ("pieces", ComputeConfig(device="cpu", micro_batch_size=4)),
        ("waves", ComputeConfig(device="cpu", num_envs=5)),
    ):
        cut = untimed(train(algorithm, base, tmp_path / name, ONE_SEARCH, **options, compute=compute))
        for row, expected in zip(cut, whole, strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-4), name


def test_a_group_of_one_trains_or_is_refused(algorithm: ModuleType, base: Path, tmp_path: Path) -> None:
    try:
        rows = train(algorithm, base, tmp_path / "run", **SMALL, group_size=1)
    except OptionError as error:
        assert "group_size" in str(error)  # noqa: PT017
    else:
        assert len(rows) == 2
        assert all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"rollouts_per_update": 64, "minibatch_size": 48}, "minibatch_size"),
        ({"rollouts_per_update": 64, "group_size": 5}, "group_size"),
        ({"compute": ComputeConfig(device="cpu", micro_batch_size=3)}, "micro_batch_size"),
        ({"compute": ComputeConfig(device="cpu", micro_batch_tokens=0)}, "micro_batch_tokens"),
        ({"updates": 0}, "updates"),
        ({"epochs": 0}, "epochs"),
        ({"group_size": 0}, "group_size"),
        ({"top_p": 0.0}, "top_p"),
        ({"save": SaveConfig(save_every=0)}, "save_every"),
        ({"save": SaveConfig(transcripts=-1)}, "transcripts"),
        ({"save": SaveConfig(transcripts_every=0)}, "transcripts_every"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_do_not_fit_are_refused_and_an_earlier_run_stays(
    algorithm: ModuleType, base: Path, tmp_path: Path, sizes: dict[str, Any], named: str
) -> None:
    for name in ("config.json", "metrics.jsonl", "checkpoint/config.json", "states/update-000003/state.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"what an earlier run wrote to {name}")
    before = contents(tmp_path)
    with pytest.raises(OptionError, match=named):
        train(algorithm, base, tmp_path, **sizes)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_preset_is_sound_and_reachable_from_the_command_line(algorithm: ModuleType) -> None:
    chosen: list[TrainConfig] = []
    for name, preset in algorithm.PRESETS.items():
        assert preset.preset == name
        preset.check()
        run_command(
            chosen.append, algorithm.PRESETS, prog="algorithm", doc="", args=["--preset", name, "--updates", "7"]
        )
    assert {"default", "long", "matched"} <= set(algorithm.PRESETS)
    assert [(type(options), options.preset, options.updates) for options in chosen] == [
        (type(preset), name, 7) for name, preset in algorithm.PRESETS.items()
    ]
    run_dirs = [preset.run_dir for preset in algorithm.PRESETS.values()]
    assert len(set(run_dirs)) == len(run_dirs)


def test_an_unknown_preset_is_answered_with_the_closest_one(
    algorithm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="did you mean 'matched'"):
        named_preset(algorithm.PRESETS, ["--preset", "mached"])
    with pytest.raises(SystemExit, match=r"error: .*did you mean 'default'"):
        algorithm.main(["--preset", "defualt"])
    assert not list(tmp_path.iterdir())


def test_an_unknown_algorithm_is_answered_with_the_closest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'grpo'"):
        algorithms.load("gprpo")
    with pytest.raises(UnknownNameError, match="known names: "):
        algorithms.load("zzzzzz")


def test_a_new_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing reads files and imports nothing; loading imports one."""
    package = tmp_path / "fake_agents"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "algorithms.py").write_text(Path(str(algorithms.__file__)).read_text())
    (package / "newest.py").write_text("PRESETS: dict = {}\ndef train(config, *, make_envs, log=None): ...\n")
    (package / "helper.py").write_text("def train(config): ...\nraise RuntimeError\n")
    (package / "broken.py").write_text("PRESETS = {}\nimport nothing_of_that_name\ndef train(config): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = __import__("fake_agents.algorithms", fromlist=["names"])
    assert found.names() == ("broken", "newest")
    assert found.load("newest").PRESETS == {}
    assert "fake_agents.broken" not in sys.modules


@pytest.fixture
def rollouts(base: Path) -> RolloutBatch:
    """Episodes of different lengths, some with a search and some without."""
    policy, codec = load_policy(base)
    envs = ONE_SEARCH.make_envs(EnvConfig(), codec, 12)
    return collate(collect(envs, CachedGenerator(policy.model, codec), range(12), seed=1), codec.pad_id)


def gradients(base: Path, batch: RolloutBatch, aggregation: losses.Aggregation, **compute: Any) -> Iterator[Any]:
    """What one optimiser step over all of ``batch`` sees, in float64."""
    config = TrainConfig(
        model=str(base),
        rollouts_per_update=len(batch),
        minibatch_size=len(batch),
        kl_coef=0.0,
        entropy_coef=1.0,
        optimizer=OptimizerConfig(learning_rate=0.0, max_grad_norm=1e9),
        compute=ComputeConfig(device="cpu", **compute),
    )
    learner = Learner(config)
    learner.policy.double()
    learner.begin(0)
    seen: list[torch.Tensor | None] = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(w.grad for w in learner.policy.parameters()))
    generator = torch.Generator().manual_seed(0)
    advantages = torch.randn(batch.loss_mask.shape, generator=generator)
    for part in learner.parts(batch, seed=5):
        new = learner.evaluate(part)
        weights = part.weights(batch.loss_mask, aggregation, max_tokens=8)
        loss, stats = losses.ppo_policy_loss(
            new.logprobs, part.old_logprobs, part.cut(advantages), part.loss_mask, 0.2, 0.2, weights=weights
        )
        loss = loss - 0.1 * losses.weighted_sum(new.entropies, part.loss_mask, weights)
        learner.backward(loss, stats)
    assert learner.skipped_steps == 0
    yield learner.statistics()
    yield from seen


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "sequence-sum"])
def test_gradients_of_micro_batches_add_up_to_that_of_the_whole(
    base: Path, rollouts: RolloutBatch, aggregation: losses.Aggregation
) -> None:
    """The weights of tokens and their log-probabilities are float32 in both; everything that is summed is float64."""
    assert len(rollouts.loss_mask.sum(dim=1).unique()) > 1
    stats, *whole = gradients(base, rollouts, aggregation)
    largest = max(float(gradient.abs().max()) for gradient in whole)
    longest = rollouts.token_ids.shape[1]
    for compute in ({"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 3 * longest}):
        other_stats, *parts = gradients(base, rollouts, aggregation, **compute)
        assert other_stats == pytest.approx(stats, rel=1e-5)
        for part, expected in zip(parts, whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-9 * largest)


def test_aggregations_are_different_losses(base: Path, rollouts: RolloutBatch) -> None:
    """What the test above compares does tell one aggregation from another."""
    by_token, by_row = (
        torch.cat([gradient.flatten() for gradient in list(gradients(base, rollouts, how, micro_batch_size=3))[1:]])
        for how in ("token-mean", "sequence-mean")
    )
    assert torch.cosine_similarity(by_token, by_row, dim=0) < 0.999


def test_learning_rate_rises_over_the_warm_up_and_falls_to_its_final_fraction() -> None:
    factors = [learning_rate_factor(update, 101, 4, 0.5) for update in range(101)]
    assert factors[0] == pytest.approx(1 / 5)
    assert factors[2] == pytest.approx(3 / 5 * (1 - 0.5 * 2 / 100))
    assert factors[50] == pytest.approx(0.75)
    assert factors[-1] == pytest.approx(0.5)
    assert max(factors) == factors[4]


@pytest.mark.parametrize(("max_seconds", "updates"), [(1e-9, 0), (1e9, 3)])
def test_no_update_begins_after_the_last_second(base: Path, tmp_path: Path, max_seconds: float, updates: int) -> None:
    config = probe_config(algorithms.load("ppo").PRESETS["default"], base, tmp_path, max_seconds=max_seconds)
    algorithms.load("ppo").train(config, make_envs=ONE_SEARCH.make_envs)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == updates
    load_policy(tmp_path / "checkpoint")


def test_there_is_time_for_something() -> None:
    with pytest.raises(OptionError, match="max_seconds > 0, got 0"):
        TrainConfig(max_seconds=0).check()
