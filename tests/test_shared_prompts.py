"""Prompts that are computed once give what whole rows give, and are shared only where that is less work."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoders import MODELS
from torch import Tensor
from transformers import PreTrainedModel

from agents import grpo, ppo, shared_prompts
from agents.config import ComputeConfig, OptimizerConfig
from agents.micro_batches import Sizes, micro_batches
from agents.policy import CausalLMWithValueHead, evaluate_tokens
from agents.ppo import ValueConfig
from agents.preparation import prepare_models
from agents.shared_prompts import AT_MOST, find_shared_prompts, relative_work, work
from agents.tasks import EnvConfig
from benchmarks.shared_prompts import CASES, SharedPromptsConfig, main, table
from search_gym import Document, Question, SearchVectorEnv
from search_gym.codec import TokenCodec

VOCAB = 50
PLAIN = [name for name in MODELS if "tiny" not in name]


@pytest.fixture(scope="module", params=[*PLAIN, "eager"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return small_models.eager_llama(VOCAB) if request.param == "eager" else MODELS[request.param]().eval()


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, attention mask and loss mask (B, T) of rows that begin with one of few prompts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    prompts = [torch.randint(2, 6, (length,), generator=generator) for length in lengths]
    row = st.tuples(st.sampled_from(prompts), st.integers(1, 12), st.sampled_from([0.0, 0.3, 1.0]))
    rows = []
    for prompt, length, density in draw(st.lists(row, min_size=1, max_size=6)):
        sampled = torch.rand(length, generator=generator) < density
        ids = torch.cat((prompt, torch.randint(2, VOCAB - 1, (length,), generator=generator)))
        rows.append((ids, torch.cat((torch.zeros(len(prompt), dtype=torch.bool), sampled))))
    shape = len(rows), max(len(ids) for ids, _ in rows) + draw(st.integers(0, 2))
    ids, (real, sampled) = torch.zeros(shape, dtype=torch.int64), torch.zeros(2, *shape, dtype=torch.bool)
    for row, (tokens, mask) in enumerate(rows):
        ids[row, : len(tokens)], real[row, : len(tokens)], sampled[row, : len(tokens)] = tokens, True, mask
    return ids, real, sampled


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompts, "AT_MOST", float("inf"))


@settings(max_examples=25, deadline=None)
@given(batch=batches(), seed=st.integers(0, 9))
def test_shared_prompts_change_no_score_and_no_gradient(model: PreTrainedModel, batch: Any, seed: int) -> None:
    ids, real, sampled = batch
    weights = torch.randn(2, *sampled.shape, generator=torch.Generator().manual_seed(seed))
    found = []
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        for shares in (False, True):
            model.zero_grad()
            scores = evaluate_tokens(model, ids, real, sampled, 0.8, vocab_size=VOCAB - 1, share_prompts=shares)
            sum((weight * score).sum() for weight, score in zip(weights, scores, strict=True)).backward()
            found.append((scores, [torch.zeros(1) if w.grad is None else w.grad.clone() for w in model.parameters()]))
    (whole, gradients), (shared, others) = found
    for expected, score in zip(whole, shared, strict=True):
        torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-5)
    largest = max(1.0, *(float(gradient.abs().max()) for gradient in gradients))
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, gradient, rtol=0, atol=3e-4 * largest)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(batch=batches())
def test_in_bfloat16_they_change_a_score_by_its_rounding(model: PreTrainedModel, batch: Any) -> None:
    """Against float32, as far off as whole rows are: eight bits of mantissa, and logits of several units."""
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        exact = evaluate_tokens(model, *batch, 1.0).logprobs
        with torch.autocast("cpu", torch.bfloat16):
            whole, shared = (evaluate_tokens(model, *batch, 1.0, share_prompts=s).logprobs for s in (False, True))
    assert (shared - exact).abs().max() <= 3 * (whole - exact).abs().max() + 0.1


@settings(deadline=None)
@given(batch=batches())
def test_what_is_shared_is_what_rows_have_in_common_before_they_sample(batch: Any) -> None:
    ids, real, sampled = batch
    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        shared = find_shared_prompts(small_models.llama(VOCAB).config, *batch)
    assert shared is not None
    prompts = []
    for row, length in enumerate(shared.lengths.tolist()):
        assert length >= 1
        assert real[row, :length].all()
        assert not sampled[row, :length].any()
        assert not sampled[row].any() or sampled[row, length]
        assert not sampled[row, length + shared.rest + 1 :].any()
        prompts.append(tuple(ids[row, :length].tolist()))
    assert [prompts[row] for row in shared.rows[shared.of]] == prompts
    assert len(shared.rows) == len(set(prompts))
    assert (shared.shortest, shared.longest) == (min(map(len, prompts)), max(map(len, prompts)))


def test_rows_that_are_padded_on_the_left_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    ids = torch.full((2, 6), 3)
    real, sampled = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 6, dtype=torch.bool)
    sampled[:, -1] = True
    config = small_models.llama(VOCAB).config
    assert find_shared_prompts(config, ids, real, sampled) is not None
    real[0, 0] = False
    assert find_shared_prompts(config, ids, real, sampled) is None


def test_work_counts_the_multiplications_of_a_layer() -> None:
    layer = MODELS["qwen3"]().model.layers[0]  # pyright: ignore[reportAttributeAccessIssue]
    config = MODELS["qwen3"]().config
    matrices = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    assert work(config, 1, 0) == matrices
    assert work(config, 0, 1) == 2 * 4 * 16  # a score and a sum over values, each of 4 heads of 16


def test_long_prompts_of_many_rows_are_shared_and_others_are_not() -> None:
    size = partial(relative_work, small_models.llama(VOCAB).config)
    assert size(rows=8, columns=270, prompts=1, longest=250, rest=19) < AT_MOST / 2
    assert size(rows=8, columns=270, prompts=8, longest=250, rest=19) > AT_MOST  # nothing in common
    assert size(rows=8, columns=1000, prompts=1, longest=100, rest=899) > AT_MOST


rests = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(
    groups=st.lists(st.tuples(st.integers(5, 40), rests), min_size=1, max_size=6),
    tokens=st.integers(20, 200),
    num_processes=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_rows_of_a_group_are_cut_into_parts_that_hold_no_more_than_they_may(
    groups: list[tuple[int, list[int]]], tokens: int, num_processes: int, seed: int
) -> None:
    table = [(prompt + rest, prompt, group) for group, (prompt, rests) in enumerate(groups) for rest in rests]
    mixed = np.random.default_rng(seed).permutation(len(table))
    sizes = Sizes(*torch.tensor(table)[mixed].T)
    order, costs = sizes.order()
    assert order.tolist() == np.argsort(sizes.lengths.numpy(), kind="stable").tolist()
    assert costs.tolist() == sizes.lengths[order].tolist()

    with pytest.MonkeyPatch.context() as patch:
        always(patch)
        order, costs = sizes.order(small_models.llama(VOCAB).config, num_processes)
    assert sorted(order.tolist()) == list(range(len(table)))
    assert sorted(costs.tolist()) == costs.tolist()
    ordered = sizes.groups[order].tolist()
    assert sum(a != b for a, b in itertools.pairwise(ordered)) == len(groups) - 1  # each in a row
    for part in micro_batches(costs.tolist(), tokens=tokens):
        assert (part.stop - part.start) * int(costs[part][-1]) <= tokens or part.stop - part.start == 1
    for group, (prompt, lengths) in enumerate(groups):  # what a group costs pays for all that is computed for it
        paid = int(costs[sizes.groups[order] == group].sum())
        copies = min(num_processes, len(lengths))
        assert 0 <= paid - (copies * prompt + len(lengths) * max(lengths)) < len(lengths)


class NoDocuments:
    def search(self, queries: list[str], k: int) -> list[list[Document]]:
        return [[] for _ in queries]


def long_prompts(config: EnvConfig, codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
    """Episodes of one turn of three tokens after a prompt of 30 or more; every "who" is paid."""
    return SearchVectorEnv(
        num_envs,
        questions=[Question(str(i), "who is " * (15 + i), ("who",)) for i in range(4)],
        retriever=NoDocuments(),
        codec=codec,
        reward_fn=lambda outcome: outcome.text.split().count("who") / 3,
        prompt_fn=str,
        max_turns=0,
        max_turn_tokens=3,
    )


@pytest.mark.parametrize(
    ("module", "options", "compute"),
    [
        (grpo, {"group_size": 4}, {}),
        (grpo, {"group_size": 4}, {"micro_batch_tokens": 60}),
        (grpo, {"group_size": 4}, {"lora_rank": 2}),
        (ppo, {"group_size": 4, "value": ValueConfig(critic="separate")}, {}),
        (ppo, {"group_size": 4, "value": ValueConfig(mask="response")}, {}),
    ],
    ids=["grpo", "in parts", "adapters", "separate critic", "shared trunk"],
)
def test_training_learns_the_same_from_fewer_tokens(
    module: Any, options: dict[str, Any], compute: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "lora_rank" in compute:
        pytest.importorskip("peft")
    words = small_models.tokenizer()
    small_models.llama(len(words)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    found = []
    for shares in (False, True):
        run_dir = tmp_path / str(shares)
        config = replace(
            module.PRESETS["default"],
            run_dir=run_dir,
            model=str(tmp_path / "model"),
            updates=2,
            rollouts_per_update=16,
            minibatch_size=16,
            kl_coef=0.01,
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_updates=0),
            compute=ComputeConfig(device="cpu", engine="simple", share_prompts=shares, **compute),
            **options,
        )
        fed: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Embedding, "forward", _counting(fed))
            module.train(config, make_envs=long_prompts)
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        rows = [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
        found.append((rows, sum(fed)))
    (whole, all_tokens), (shared, fewer) = found
    assert fewer < 0.7 * all_tokens  # of which sampling is a part that stays
    assert shared[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-5)
    assert shared[1] == pytest.approx(whole[1], rel=2e-3, abs=2e-3)


def _counting(fed: list[int]) -> Any:
    """An embedding's `forward` that notes how many tokens it is given."""

    def forward(embedding: torch.nn.Embedding, ids: Tensor) -> Tensor:
        fed.append(ids.numel())
        return torch.nn.functional.embedding(ids, embedding.weight)

    return forward


@pytest.mark.filterwarnings("ignore")  # warnings of the compiler about itself
@pytest.mark.parametrize("compute", [{"gradient_checkpointing": True}, {"compile": "layers"}, {"share_prompts": False}])
def test_layers_that_could_not_share_do_not(compute: dict[str, Any], tmp_path: Path) -> None:
    words = small_models.tokenizer()
    small_models.llama(len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    config = replace(grpo.PRESETS["default"], model=str(tmp_path), compute=ComputeConfig(device="cpu", **compute))
    models = prepare_models(config, torch.device("cpu"), with_values=False, separate_critic=False)
    assert not models.policy.share_prompts
    assert models.reference is not None
    assert models.reference.share_prompts == compute.get("share_prompts", True)


def test_a_model_with_another_output_layer_does_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    ids, real = torch.full((2, 6), 3), torch.ones(2, 6, dtype=torch.bool)
    sampled = torch.arange(6)[None].expand(2, -1) > 3
    policy = CausalLMWithValueHead(small_models.tiny(VOCAB))
    policy.share_prompts = True
    expected = evaluate_tokens(policy.model, ids, real, sampled, 1.0)
    assert torch.equal(policy.evaluate_tokens(ids, real, sampled, 1.0).logprobs, expected.logprobs)


def test_the_benchmark_compares_the_same_update(tmp_path: Path) -> None:
    names = ("documents in the prompt", "long searches")
    config = SharedPromptsConfig(cases=names, rounds=1, output=tmp_path / "shared.json")
    results = main(config)
    assert json.loads(config.output.read_text()) == results
    for name, row in results["cases"].items():
        assert (row["prompt"], row["tokens"], row["size"]) == CASES[name]
        assert row["loss_difference"] < 1e-5
        assert row["gradient_difference"] < 1e-5
        assert row["is_shared"] == (row["predicted_ratio"] <= AT_MOST) == (name == names[0])
        assert f"| {name} | {row['tokens']} |" in table(results)
