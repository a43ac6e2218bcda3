"""How the work is cut, where it runs and in which precision changes nothing that is learned, rounding apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import llama, tokenizer

from agents import dapo, dr_grpo, grpo, gspo, ppo, rloo
from agents.config import ComputeConfig, OptimizerConfig
from agents.learner import CPU_TOKENS, Learner
from agents.micro_batches import Sizes
from agents.models import load_model
from agents.tasks import EnvConfig, make_envs
from agents.trainer import Trainer
from search_gym import Document, Outcome, Question, SearchVectorEnv
from search_gym.codec import TokenCodec
from search_gym.errors import OptionError

ROOT = Path(__file__).parents[1]


class NoDocuments:
    def search(self, queries: list[str], k: int) -> list[list[Document]]:
        return [[] for _ in queries]


def share_of_words(outcome: Outcome) -> float:
    return outcome.text.split().count("who") / 6


def say_who(
    config: EnvConfig, codec: TokenCodec, num_envs: int, reward: Callable[[Outcome], float] = share_of_words
) -> SearchVectorEnv:
    """Episodes of one turn of six tokens; every "who" is paid."""
    return SearchVectorEnv(
        num_envs,
        questions=[Question(str(i), "who is", ("who",)) for i in range(8)],
        retriever=NoDocuments(),
        codec=codec,
        reward_fn=reward,
        prompt_fn=str,
        max_turns=0,
        max_turn_tokens=6,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama with its tokenizer, in a directory."""
    directory = tmp_path_factory.mktemp("llama")
    words = tokenizer()
    llama(len(words)).save_pretrained(directory)
    words.save_pretrained(directory)
    return str(directory)


def config(kind: type, run_dir: Path, model: str, **compute: Any) -> Any:
    return kind(
        run_dir=run_dir,
        model=model,
        updates=3,
        rollouts_per_update=16,
        minibatch_size=8,
        group_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_updates=0),
        compute=ComputeConfig(device="cpu", **compute),
    )


def rows(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]], tolerance: float) -> None:
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(
    "compute",
    [
        {"micro_batch_size": 1},
        {"micro_batch_size": 4},
        {"micro_batch_tokens": 20},
        {"num_envs": 3},
        {"gradient_checkpointing": True},
    ],
    ids=lambda compute: next(iter(compute)),
)
def test_pieces_change_nothing_but_rounding(model: str, tmp_path: Path, compute: dict[str, Any]) -> None:
    """Float32 sums of some hundred terms in another order differ by about 1e-6; three updates of Adam spread that."""
    whole, pieces = (
        config(ppo.PPOConfig, tmp_path / "whole", model),
        config(ppo.PPOConfig, tmp_path / "pieces", model, **compute),
    )
    ppo.train(whole, make_envs=say_who)
    ppo.train(pieces, make_envs=say_who)
    assert_close(rows(pieces.run_dir)[:1], rows(whole.run_dir)[:1], 1e-4)
    assert_close(rows(pieces.run_dir), rows(whole.run_dir), 2e-3)


def test_parts_hold_as_many_tokens_as_they_may(tmp_path: Path) -> None:
    options = replace(
        grpo.PRESETS["default"],
        run_dir=tmp_path,
        rollouts_per_update=32,
        compute=ComputeConfig(device="cpu", micro_batch_tokens=400),
    )
    with Trainer(options, title="test", make_envs=make_envs) as run:
        next(run.updates())
        batch = run.collate(run.collect())
        parts = []
        for part in run.minibatches(batch):
            parts.append(part)
            run.backward(run.evaluate(part).logprobs.sum(), {"n": part.loss_mask.sum()})
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(32))
    assert all(part.batch.token_ids.numel() <= 400 for part in parts)
    computed = sum(part.batch.token_ids.numel() for part in parts)
    assert run.padding == pytest.approx(1 - int(batch.attention_mask.sum()) / computed)
    assert 0 < run.padding < 0.1 < 1 - float(batch.attention_mask.float().mean())


def test_a_cpu_takes_parts_of_so_many_tokens_unless_told_otherwise(model: str, tmp_path: Path) -> None:
    sizes = Sizes(torch.full((64,), 100), torch.ones(64, dtype=torch.int64), torch.arange(64))
    with Trainer(config(ppo.PPOConfig, tmp_path, model), title="test", make_envs=say_who) as run:
        assert max(len(part) * 100 for part in run._cut(sizes, True)) <= CPU_TOKENS
    with Trainer(config(ppo.PPOConfig, tmp_path, model, micro_batch_size=8), title="test", make_envs=say_who) as run:
        assert [len(part) for part in run._cut(sizes, True)] == [8] * 8


@pytest.mark.parametrize("is_off", [False, True])
def test_some_rollouts_are_scored_to_see_that_training_and_sampling_agree(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_off: bool
) -> None:
    scored: list[int] = []
    score = Learner.score
    monkeypatch.setattr(
        Learner, "score", lambda self, batch, *mask: scored.append(len(batch)) or score(self, batch, *mask)
    )
    options = replace(config(grpo.GRPOConfig, tmp_path, model), kl_coef=0.0)
    with Trainer(options, title="test", make_envs=say_who) as run:
        next(run.updates())
        rollouts = run.collect()
        batch = run.collate(rollouts)
        if is_off:
            batch = replace(batch, old_logprobs=batch.old_logprobs + 0.5)
        next(run.minibatches(batch))
        assert scored == [2]  # of 16
        run.record(rollouts, batch, torch.zeros_like(batch.old_logprobs))
        assert run.log.rows[-1]["loss/logprob_mismatch"] == pytest.approx(0.5 * is_off, abs=1e-5)


def test_rollouts_that_have_all_been_scored_are_not_scored_again(model: str, tmp_path: Path) -> None:
    with Trainer(config(ppo.PPOConfig, tmp_path, model), title="test", make_envs=say_who, with_values=True) as run:
        next(run.updates())
        rollouts = run.collect()
        batch = run.collate(rollouts)
        batch.old_logprobs[-1] += 0.5  # of the one that a sample would leave out
        run.score(batch)
        next(run.minibatches(batch))
        run.record(rollouts, batch, torch.zeros_like(batch.old_logprobs))
        assert run.log.rows[-1]["loss/logprob_mismatch_max"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4, 16])
def test_every_process_checks_as_many_rollouts(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    with Trainer(config(grpo.GRPOConfig, tmp_path, model), title="test", make_envs=say_who) as run:
        monkeypatch.setattr(run, "accelerator", SimpleNamespace(num_processes=num_processes))
        for size in range(num_processes, 100, num_processes):
            rows = run._checked(size).tolist()
            assert len(rows) % num_processes == 0
            assert max(1, size // 16) <= len(rows) <= max(num_processes, size // 8)
            assert sorted(set(rows)) == rows
            assert rows[-1] < size


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_checkpointed_layers_are_computed_again_for_the_gradient(model: str, tmp_path: Path, critic: str) -> None:
    options = config(ppo.PPOConfig, tmp_path, model, gradient_checkpointing=True, micro_batch_size=8)
    with Trainer(
        options, title="test", make_envs=say_who, with_values=True, separate_critic=critic == "separate"
    ) as run:
        next(run.updates())
        batch = run.collate(run.collect())
        trained = [run.policy.model] if critic == "shared" else [run.policy.model, run.policy.critic]
        forwards = []
        for trunk in trained:
            layers: Any = trunk.get_decoder().layers
            for layer in layers:
                layer.mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
        run.score(batch)
        assert len(forwards) == (num_layers := 2 * len(trained)) * 2  # of two parts
        forwards.clear()
        new = run.evaluate(next(run.minibatches(batch)))
        assert len(forwards) == num_layers
        (new.logprobs.sum() + new.values.sum()).backward()
        assert len(forwards) == 2 * num_layers
        assert not any(module.training for module in run.policy.modules())


def test_bfloat16_scores_what_float32_scores(model: str, tmp_path: Path) -> None:
    """A mantissa of eight bits rounds each of a few dozen operations by up to 2^-9 of its size."""

    def trainer(precision: str) -> Trainer:
        options = config(ppo.PPOConfig, tmp_path, model, precision=precision)
        return Trainer(options, title="test", make_envs=say_who, with_values=True)

    with trainer("fp32") as exact, trainer("bf16") as rounded:
        next(exact.updates())
        batch = exact.collate(exact.collect())
        expected, found = exact.score(batch), rounded.score(batch)
    difference = (found.logprobs - expected.logprobs)[batch.loss_mask].abs()
    assert 0 < difference.mean() < 0.1


def test_a_reference_in_bfloat16_scores_as_one_in_float32(model: str, tmp_path: Path) -> None:
    """Autocast would round its matrices to the same numbers."""
    options = config(grpo.GRPOConfig, tmp_path, model, precision="bf16")
    with Trainer(replace(options, kl_coef=0.1), title="test", make_envs=say_who) as run:
        next(run.updates())
        batch = run.collate(run.collect())
        reference = run.models.reference
        assert reference is not None
        kept = {w.dtype for name, w in reference.model.named_parameters() if ".layers." in name and w.ndim == 2}
        assert kept == {torch.bfloat16}
        scored = run.score_reference(batch)
        assert scored is not None
        assert torch.equal(scored, run.score(batch).logprobs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_do_not_outlive_the_step(model: str, tmp_path: Path, checkpointing: bool) -> None:
    options = config(grpo.GRPOConfig, tmp_path, model, precision="bf16", gradient_checkpointing=checkpointing)
    with Trainer(options, title="test", make_envs=say_who) as run:
        next(run.updates())
        for part in run.minibatches(run.collate(run.collect())):
            new = run.evaluate(part)
            run.backward(new.logprobs.sum(), {"sum": new.logprobs.sum()})
        assert all(weight.grad is None for weight in run.policy.parameters())


def test_bfloat16_trains_float32_weights(model: str, tmp_path: Path) -> None:
    options = config(ppo.PPOConfig, tmp_path / "run", model, precision="bf16")
    policy = ppo.train(options, make_envs=say_who)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert all(row["loss/logprob_mismatch"] < 0.1 and row["loss/skipped_steps"] == 0 for row in rows(options.run_dir))


@pytest.mark.parametrize(("module", "kind"), [(ppo, ppo.PPOConfig), (grpo, grpo.GRPOConfig)], ids=["ppo", "grpo"])
def test_adapters_train_little_and_leave_a_plain_model(module: Any, kind: type, model: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = replace(config(kind, tmp_path / "run", model, lora_rank=2), minibatch_size=16)
    with Trainer(options, title="test", make_envs=say_who) as run:
        trained = [name for name, weight in run.policy.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    module.train(options, make_envs=say_who)
    found = rows(options.run_dir)
    assert found[0]["loss/kl"] == pytest.approx(0, abs=1e-9)  # adapters begin as nothing, and the reference has none
    assert found[-1]["loss/kl"] > found[0]["loss/kl"]
    assert all(row["loss/logprob_mismatch"] < 1e-4 for row in found)
    base, _ = load_model(model)
    saved, _ = load_model(options.run_dir / "checkpoint")
    assert saved.state_dict().keys() == base.state_dict().keys()
    moved = {name for name, weight in saved.state_dict().items() if not weight.equal(base.state_dict()[name])}
    assert moved
    assert all("proj" in name for name in moved)


def test_adapters_resume_exactly(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")

    class Interrupt(Exception):
        pass

    def options(name: str) -> Any:
        made = config(grpo.GRPOConfig, tmp_path / name, model, lora_rank=2)
        return replace(made, save=replace(made.save, save_every=1, resume=True))

    grpo.train(options("alone"), make_envs=say_who)
    collect = Trainer.collect

    def interrupt(run: Trainer) -> Any:
        if run.update == 2:
            raise Interrupt
        return collect(run)

    monkeypatch.setattr(Trainer, "collect", interrupt)
    with pytest.raises(Interrupt):
        grpo.train(options("stopped"), make_envs=say_who)
    monkeypatch.undo()
    grpo.train(options("stopped"), make_envs=say_who)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "alone")


@pytest.mark.parametrize("module", [grpo, dr_grpo, gspo, rloo], ids=lambda module: module.__name__.split(".")[1])
@pytest.mark.parametrize("most", [0, 1], ids=["all groups tied", "some groups tied"])
def test_tied_groups_change_nothing_that_is_learned(
    module: Any, most: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that are known to be 0 are not computed; metrics, weights and Adam's moments are those of all."""

    def often_enough(outcome: Outcome) -> float:
        return float(outcome.text.split().count("who") >= most)

    envs = partial(say_who, reward=often_enough)
    kind = next(value for name, value in vars(module).items() if name.endswith("Config") and name != "TrainConfig")
    options = replace(config(kind, tmp_path, model), kl_coef=0.0, epochs=2)
    plain, parts = Trainer.parts, []

    def spied(self: Trainer, batch: Any, seed: int, idle: Any = None) -> Any:
        for part in plain(self, batch, seed, idle):
            parts.append(part.idle)
            yield part

    monkeypatch.setattr(Trainer, "parts", spied)
    found = module.train(replace(options, run_dir=tmp_path / "idle"), make_envs=envs)
    assert any(parts)
    assert all(parts) == (most == 0)
    monkeypatch.setattr(Trainer, "parts", lambda self, batch, seed, idle=None: plain(self, batch, seed))
    expected = module.train(replace(options, run_dir=tmp_path / "all"), make_envs=envs)
    assert_close(rows(tmp_path / "idle"), rows(tmp_path / "all"), 1e-4)
    for weight, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6)


def test_rollouts_with_another_loss_are_never_idle(model: str, tmp_path: Path) -> None:
    options = replace(config(grpo.GRPOConfig, tmp_path, model), kl_coef=0.0)
    for others in ({"entropy_coef": 0.1}, {"kl_coef": 0.1, "kl": "k3-loss"}, {"llds_coef": 0.1}):
        with Trainer(replace(options, **others), title="test", make_envs=say_who) as run:
            next(run.updates())
            batch = run.collate(run.collect())
            for part in run.minibatches(batch, torch.zeros(batch.loss_mask.shape)):
                assert not part.idle
                run.backward(run.evaluate(part).logprobs.sum(), {"one": torch.ones(())})
    (tmp_path / "mine.py").write_text("def clipped_loss(*args): raise SystemExit")
    with Trainer(
        replace(options, use=(f"{tmp_path / 'mine.py'}:clipped_loss",)), title="test", make_envs=say_who
    ) as run:
        next(run.updates())
        batch = run.collate(run.collect())
        assert not next(run.minibatches(batch, torch.zeros(batch.loss_mask.shape))).idle


def test_one_informative_group_is_enough_for_dapo(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rollouts than a mini-batch make a smaller one; none at all leave the weights as they are."""
    found = iter([1, 0])
    monkeypatch.setattr(dapo, "informative_groups", lambda rollouts, size: rollouts[: next(found) * size])
    options = config(dapo.DAPOConfig, tmp_path, model)
    options = replace(options, minibatch_size=8, rollouts_per_update=8, max_rounds=1, updates=2)
    dapo.train(options, make_envs=say_who)
    (row,) = rows(options.run_dir)
    assert row["update"] == 1
    assert row["loss/grad_norm"] > 0


def test_a_model_without_gradient_checkpointing_says_so(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"gradient checkpointing, got TinyForCausalLM; do: leave out"):
        ppo.train(config(ppo.PPOConfig, tmp_path, "tiny", gradient_checkpointing=True))


def test_a_separate_critic_has_its_own_weights_rate_and_checkpoint(model: str, tmp_path: Path) -> None:
    options = replace(
        config(ppo.PPOConfig, tmp_path / "run", model), value=ppo.ValueConfig(critic="separate"), epochs=2
    )
    policy = ppo.train(options, make_envs=say_who)
    assert policy.critic is not None
    own, theirs = policy.model.state_dict(), policy.critic.state_dict()
    assert any(not own[name].equal(theirs[name]) for name in own)
    again = replace(options, run_dir=tmp_path / "again", model=str(options.run_dir / "checkpoint"), updates=1)
    ppo.train(again, make_envs=say_who)
    assert rows(again.run_dir)[0]["loss/explained_variance"] != 0  # a new critic's values are all 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_two_processes_make_the_update_of_one(name: str, tmp_path: Path) -> None:
    """Each process computes half of every mini-batch; sums in another order differ by some 1e-7 of their size."""
    options = [
        *("-m", f"agents.{name}", "--updates", "2", "--rollouts-per-update", "16", "--minibatch-size", "8"),
        *("--group-size", "4", "--device", "cpu", "--env.reward", "format", "--run-dir"),
    ]
    launch = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for folder, prefix in (("one", []), ("two", launch)):
        command = [sys.executable, *prefix, *options, str(tmp_path / folder)]
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
        assert finished.returncode == 0, finished.stderr
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert one[0]["loss/grad_norm"] > 0.01
    assert two != one  # bit-identical sums would mean that there was one process
    assert_close(two, one, 1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # warnings of the compiler about itself
def test_compiled_layers_train_as_plain_ones_do(model: str, tmp_path: Path) -> None:
    """All layers and lengths share their code; fused operations round elsewhere, in the last digits of float32."""
    plain, compiled = (config(ppo.PPOConfig, tmp_path / name, model, compile=name) for name in ("none", "layers"))
    expected, found = (ppo.train(options, make_envs=say_who) for options in (plain, compiled))
    for one, other in zip(rows(plain.run_dir), rows(compiled.run_dir), strict=True):
        for key in one.keys() - {key for key in one if key.startswith("time/")}:
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
    for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_only_layers_that_are_known_are_compiled(tmp_path: Path) -> None:
    options = replace(ppo.PRESETS["default"], run_dir=tmp_path, compute=ComputeConfig(compile="layers"))
    with pytest.raises(OptionError, match=r"compile='layers', got 'search_gym_tiny'; do: leave out --compile"):
        ppo.train(options)
