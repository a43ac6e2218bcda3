"""PPO solves probes whose right answer is known, repeats itself exactly, and scores tokens as they were sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import ppo, preparation
from agents.config import OptimizerConfig, run_command
from agents.learner import learning_rate_factor
from agents.policy import CausalLMWithValueHead
from agents.ppo import PRESETS, PPOConfig
from agents.tasks import EnvConfig
from agents.tiny import TinyConfig, TinyForCausalLM
from search_gym import Document, Outcome, Question, SearchVectorEnv, WordCodec
from search_gym.errors import OptionError

COLOURS = ("red", "green", "blue", "grey")
CODEC = WordCodec((*COLOURS, "say"))
TOKENS = 4


class NoDocuments:
    def search(self, queries: list[str], k: int) -> list[list[Document]]:
        return [[] for _ in queries]


def share_of_right_words(outcome: Outcome) -> float:
    """The part of the tokens that are the word asked for: a reward that random text already gets some of."""
    return outcome.text.split().count(outcome.answers[0]) / TOKENS


def probe(colours: tuple[str, ...]) -> Callable[..., SearchVectorEnv]:
    """An episode is one turn of ``TOKENS`` tokens; the prompt names the word that is paid."""

    def make_envs(config: EnvConfig, codec: WordCodec, num_envs: int) -> SearchVectorEnv:
        return SearchVectorEnv(
            num_envs,
            questions=[Question(colour, f"say {colour}", (colour,)) for colour in colours],
            retriever=NoDocuments(),
            codec=codec,
            reward_fn=share_of_right_words,
            prompt_fn=str,
            max_turns=0,
            max_turn_tokens=TOKENS,
        )

    return make_envs


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_policy(name: str) -> tuple[CausalLMWithValueHead, WordCodec]:
        torch.manual_seed(0)
        model = TinyForCausalLM(
            TinyConfig(
                vocab_size=CODEC.vocab_size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                initializer_range=0.02,
            )
        )
        return CausalLMWithValueHead(model, vocab_size=CODEC.vocab_size), CODEC

    monkeypatch.setattr(preparation, "load_policy", load_policy)


def config(tmp_path: Path, **options: Any) -> PPOConfig:
    rates = OptimizerConfig(learning_rate=options.pop("learning_rate", 1e-2))
    defaults = {"updates": 40, "rollouts_per_update": 64, "kl_coef": 0.0}
    return PPOConfig(run_dir=tmp_path / "run", optimizer=rates, **{**defaults, **options})


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("colours", [("red",), COLOURS], ids=["constant target", "target in the prompt"])
def test_ppo_solves_a_probe(tmp_path: Path, colours: tuple[str, ...]) -> None:
    ppo.train(config(tmp_path), make_envs=probe(colours))
    rows = metrics(tmp_path / "run")
    assert rows[0]["rollout/reward"] < 0.5
    assert rows[-1]["rollout/reward"] > 0.9


@pytest.mark.usefixtures("untrained")
def test_sampled_and_recomputed_logprobs_agree_in_every_update(tmp_path: Path) -> None:
    ppo.train(config(tmp_path, updates=5), make_envs=probe(COLOURS))
    assert max(row["loss/logprob_mismatch"] for row in metrics(tmp_path / "run")) < 1e-4


@pytest.mark.usefixtures("untrained")
def test_the_same_seed_gives_the_same_run_and_another_one_does_not(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        ppo.train(config(tmp_path / name, updates=3, seed=seed, kl_coef=0.1), make_envs=probe(COLOURS))
        rows = metrics(tmp_path / name / "run")
        runs.append([{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("kind", ["k3-loss", "k1-reward"])
def test_the_kl_keeps_the_policy_where_it_was(tmp_path: Path, kind: str) -> None:
    """With a large weight the KL outweighs any reward in [0, 1]; with a tiny one the policy is free to move."""
    distance = {}
    for weight in (1e-6, 100.0):
        options = config(tmp_path / str(weight), updates=15, kl=kind, kl_coef=weight, learning_rate=1e-3)
        ppo.train(options, make_envs=probe(("red",)))
        distance[weight] = metrics(options.run_dir)[-1]["loss/kl"]
    assert distance[100.0] < 0.1 * distance[1e-6]


@pytest.mark.usefixtures("untrained")
def test_a_run_leaves_its_configuration_metrics_and_checkpoint(tmp_path: Path) -> None:
    ppo.train(config(tmp_path, updates=2), make_envs=probe(COLOURS))
    run = tmp_path / "run"
    written = json.loads((run / "config.json").read_text())
    assert written["updates"] == 2
    assert written["env"]["max_turns"] == EnvConfig().max_turns
    rows = metrics(run)
    assert [row["update"] for row in rows] == [1, 2]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"config.json", "model.safetensors", "value_head.safetensors"} <= {
        path.name for path in (run / "checkpoint").iterdir()
    }


@pytest.mark.usefixtures("untrained")
def test_minibatches_must_divide_the_round(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="multiple of minibatch_size"):
        ppo.train(config(tmp_path, rollouts_per_update=64, minibatch_size=48), make_envs=probe(COLOURS))


def test_learning_rate_rises_over_the_warm_up_and_falls_to_its_final_fraction() -> None:
    factors = [learning_rate_factor(update, 101, 4, 0.5) for update in range(101)]
    assert factors[0] == pytest.approx(1 / 5)
    assert factors[2] == pytest.approx(3 / 5 * (1 - 0.5 * 2 / 100))
    assert factors[50] == pytest.approx(0.75)
    assert factors[-1] == pytest.approx(0.5)
    assert max(factors) == factors[4]


def test_every_preset_is_reachable_from_the_command_line() -> None:
    chosen: list[PPOConfig] = []
    for name in PRESETS:
        run_command(chosen.append, PRESETS, prog="python -m agents.ppo", doc="", args=["--preset", name, "--seed", "7"])
    assert [options.preset for options in chosen] == list(PRESETS)
    assert [options.updates for options in chosen] == [preset.updates for preset in PRESETS.values()]
    assert {options.seed for options in chosen} == {7}
