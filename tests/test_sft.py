"""Fine-tuning predicts the tokens of actions and nothing else, on any causal language model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.baselines import sft
from agents.baselines.demonstrations import FORMS
from agents.checkpoint import load_policy
from agents.evaluate import evaluate
from agents.policy import CausalLMWithValueHead
from agents.supervised import Example, FitConfig, example_of, fit, learning_rate_factor, pad
from agents.tasks import EnvConfig
from search_gym.errors import OptionError
from search_gym.transcript import Transcript
from tests.real_text import real_text  # noqa: F401
from tests.small_models import llama, tiny

VOCAB = 12
MODELS = {"llama": llama, "tiny": tiny}


def random_examples(seed, count=5):
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        ids = rng.integers(2, VOCAB, size=int(rng.integers(4, 12)))
        mask = rng.random(len(ids)) < 0.5
        mask[0], mask[-1] = False, True
        examples.append(Example(ids, mask))
    return examples


def slow_nll(model, examples):
    """One example and one token at a time: -log softmax of the logits before the token."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, mask in ((e.token_ids, e.loss_mask) for e in examples):
            logits = model(torch.from_numpy(ids)[None]).logits[0]
            for t in np.flatnonzero(mask):
                total -= float(logits[t - 1].log_softmax(-1)[int(ids[t])])
                count += 1
    return total / count


@given(seed=st.integers(0, 1000), count=st.integers(1, 6))
def test_padding_keeps_every_token_and_adds_none(seed, count):
    examples = random_examples(seed, count)
    token_ids, attention_mask, loss_mask = pad(examples, pad_id=0)
    assert not (loss_mask & ~attention_mask).any()
    for row, example in enumerate(examples):
        length = len(example.token_ids)
        assert attention_mask[row].tolist() == [True] * length + [False] * (token_ids.shape[1] - length)
        np.testing.assert_array_equal(token_ids[row, :length], example.token_ids)
        np.testing.assert_array_equal(loss_mask[row, :length], example.loss_mask)
    assert (token_ids[~attention_mask] == 0).all()


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_the_loss_is_the_mean_over_the_tokens_of_actions(name, seed):
    policy = CausalLMWithValueHead(MODELS[name](VOCAB))
    examples = random_examples(seed)
    expected = slow_nll(policy.model, examples)
    steps = []
    fit(policy, examples, FitConfig(epochs=1, batch_size=8), pad_id=0, seed=0, on_step=steps.append)
    assert [step["loss/nll"] for step in steps] == pytest.approx([expected], rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_learned_are_the_tokens_of_the_mask(name):
    """An example whose unmasked continuation contradicts the masked one does not disturb it."""
    policy = CausalLMWithValueHead(MODELS[name](VOCAB))
    head = {key: weight.clone() for key, weight in policy.value_head.state_dict().items()}
    wanted = Example(np.array([2, 3, 4]), np.array([False, True, True]))
    ignored = [Example(np.array([2, 5, 6]), np.array([False, False, True]))] * 5
    config = FitConfig(epochs=60, batch_size=8, learning_rate=2e-2)
    fit(policy, [wanted, *ignored], config, pad_id=0, seed=0)
    logits = policy.model(torch.tensor([[2, 3]])).logits[0]
    assert logits.argmax(dim=-1).tolist() == [3, 4]
    assert all(torch.equal(weight, head[key]) for key, weight in policy.value_head.state_dict().items())


def test_every_pass_takes_each_example_once_and_the_rate_rises_and_falls():
    policy = CausalLMWithValueHead(tiny(VOCAB))
    config = FitConfig(epochs=3, batch_size=4, learning_rate=1e-3, warmup_fraction=0.5, final_fraction=0.25)
    steps = []
    fit(policy, random_examples(0, 10), config, pad_id=0, seed=0, on_step=steps.append)
    total = 3 * 3  # three batches of 4, 4 and 2 in each pass
    assert len(steps) == config.num_steps(10) == total
    expected = [min(1, (i + 1) / (total / 2 + 1)) * (1 - 0.75 * i / (total - 1)) * 1e-3 for i in range(total)]
    assert [step["loss/learning_rate"] for step in steps] == pytest.approx(expected)
    assert learning_rate_factor(total - 1, total, config) == pytest.approx(0.25)
    assert learning_rate_factor(0, 1, replace(config, warmup_fraction=0)) == 1.0


def test_nothing_to_learn_from_is_an_error():
    policy = CausalLMWithValueHead(tiny(VOCAB))
    with pytest.raises(OptionError, match="expected examples to learn from, got none"):
        fit(policy, [], FitConfig(), pad_id=0, seed=0)
    for option in ("epochs", "batch_size"):
        with pytest.raises(OptionError, match=f"expected {option} >= 1, got 0"):
            FitConfig(**{option: 0})
    with pytest.raises(OptionError, match="expected demonstrations >= 1, got 0"):
        sft.train(sft.SFTConfig(demonstrations=0))


def test_an_example_is_a_transcript_without_what_the_environment_wrote():
    transcript = Transcript()
    for kind, ids in (("prompt", [1, 2]), ("action", [3, 4]), ("observation", [5]), ("action", [6])):
        transcript.append(kind, ids)
    example = example_of(transcript)
    assert example.token_ids[example.loss_mask].tolist() == [3, 4, 6]


def weights_of(policy):
    return {name: weight.clone() for name, weight in policy.model.state_dict().items()}


def test_a_run_repeats_itself_and_leaves_a_checkpoint(tmp_path):
    config = sft.SFTConfig(form="react", demonstrations=32, fit=FitConfig(epochs=2), run_dir=tmp_path / "a")
    first = weights_of(sft.train(config))
    again = weights_of(sft.train(replace(config, run_dir=tmp_path / "b")))
    other = weights_of(sft.train(replace(config, seed=2, run_dir=tmp_path / "c")))
    saved = weights_of(load_policy(tmp_path / "a/checkpoint")[0])
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], saved[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [1, 2]
    assert rows[1]["loss/nll"] < rows[0]["loss/nll"]
    assert json.loads((tmp_path / "a/config.json").read_text())["form"] == "react"


def test_demonstrated_searches_are_learned(tmp_path):
    config = sft.SFTConfig(form="react", demonstrations=400, fit=FitConfig(epochs=5), run_dir=tmp_path)
    policy = sft.train(config)
    test_env = EnvConfig(split="test", kinds=("1-hop", "2-hop"))
    envs = FORMS["react"].make_envs(test_env, load_policy("tiny")[1], 40)
    evaluation = evaluate(policy.model, envs, range(40))
    assert evaluation.estimates["1-hop"]["em"].mean >= 0.8
    assert evaluation.estimates["2-hop"]["em"].mean >= 0.4
    assert evaluation.estimates["1-hop"]["searches"].mean == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("form", ["direct", "static-rag", "search-once"])
def test_any_causal_language_model_and_any_questions(real_text, form):  # noqa: F811
    path, env = real_text
    config = sft.SFTConfig(
        env=env,
        form=form,
        model=str(path / "model"),
        fit=FitConfig(epochs=8, batch_size=2, learning_rate=1e-2),
        run_dir=path / "run",
    )
    sft.train(config)
    rows = [json.loads(line) for line in (path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 16  # four questions in batches of two, eight times
    assert rows[-1]["loss/nll"] < rows[0]["loss/nll"] - 0.5
    policy, codec = load_policy(path / "run/checkpoint")
    assert codec.decode(codec.encode("in Adaville")) == "in Adaville"
    assert policy.model.config.model_type == "llama"


def test_a_form_that_the_questions_cannot_show_is_an_error(real_text, capsys):  # noqa: F811
    path, env = real_text
    args = ["--form", "cot", "--model", str(path / "model"), "--run-dir", str(path / "run")]
    args += ["--env.questions", env.questions, "--env.corpus", str(env.corpus), "--env.split", "all"]
    with pytest.raises(SystemExit, match="error: expected questions whose metadata holds a chain of facts"):
        sft.main(args)
    with pytest.raises(SystemExit) as stop:
        sft.main(["--form", "recat"])
    assert stop.value.code != 0
    assert "react" in capsys.readouterr().err
