"""The tiny model: its probabilities, and that caches, chunks, padding and holes never change them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from agents.tiny import CACHE, TinyConfig, TinyForCausalLM

VOCAB = 23
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> TinyForCausalLM:
    """A model whose weights are large enough for attention to be far from uniform."""
    config = TinyConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=3, initializer_range=0.4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyForCausalLM(config).eval()


def random_ids(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(3, VOCAB, shape, generator=generator)


def copy_mixture(model: TinyForCausalLM, token_ids: list[int]) -> Tensor:
    """Log-probabilities (T, V) of one row by the module's equation, term by term."""
    hidden = model(torch.tensor([token_ids]), output_hidden_states=True).hidden_states[-1][0]
    width = hidden.shape[-1]
    rows = []
    for t, state in enumerate(hidden):
        query = state @ model.pointer.query
        scores = [model.pointer.sentinel(state)[0]]
        scores += [query @ (hidden[j] @ model.pointer.key) / math.sqrt(width) for j in range(t)]
        weights = torch.softmax(torch.stack(scores), dim=0)
        probs = weights[0] * torch.softmax(model.embed_tokens.weight @ state, dim=0)
        for j in range(t):
            probs = probs + weights[1 + j] * torch.eye(VOCAB)[token_ids[j + 1]]
        rows.append(probs.log())
    return torch.stack(rows)


def test_logits_are_the_mixture_of_softmax_and_copy(model: TinyForCausalLM) -> None:
    token_ids = [5, 9, 5, 5, 20, 9, 3]
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0]
        torch.testing.assert_close(logits, copy_mixture(model, token_ids), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(logits.exp().sum(-1), torch.ones(len(token_ids)), atol=TOLERANCE, rtol=0)


def test_an_untrained_model_copies_what_followed_a_token_before() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        untrained = TinyForCausalLM(TinyConfig(vocab_size=200)).eval()
    once = 3 + torch.randperm(197, generator=torch.Generator().manual_seed(11))[:40]
    with torch.no_grad():
        predicted = untrained(torch.cat((once, once))[None]).logits[0].argmax(dim=-1)
    assert predicted[40:79].tolist() == once[1:].tolist()


def test_future_tokens_do_not_matter(model: TinyForCausalLM) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = random_ids(generator, 2, 12), random_ids(generator, 2, 12)
    second[:, :7] = first[:, :7]
    with torch.no_grad():
        a, b = model(first).logits, model(second).logits
    torch.testing.assert_close(a[:, :7], b[:, :7], atol=TOLERANCE, rtol=0)
    assert not torch.allclose(a[:, 7], b[:, 7], atol=1e-2)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[bool]], list[int], int]:
    """Which columns of each row are real (left padding, right padding and holes among them), chunk lengths, a seed."""
    batch, columns = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    real = draw(st.lists(st.lists(st.booleans(), min_size=columns, max_size=columns), min_size=batch, max_size=batch))
    cuts = sorted(draw(st.sets(st.integers(1, columns - 1), max_size=6))) if columns > 1 else []
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, columns], strict=True)]
    return real, lengths, draw(st.integers(0, 2**31 - 1))


@settings(max_examples=60, deadline=None)
@given(layouts(), st.booleans())
def test_cached_chunks_with_holes_equal_one_full_forward(
    model: TinyForCausalLM, layout: tuple[list[list[bool]], list[int], int], give_positions: bool
) -> None:
    real, lengths, seed = layout
    attention_mask = torch.tensor(real)
    input_ids = random_ids(torch.Generator().manual_seed(seed), *attention_mask.shape)
    position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
    cache, logits, start = DynamicCache(config=model.config), [], 0
    with torch.no_grad():
        for length in lengths:
            stop = start + length
            output = model(
                input_ids[:, start:stop],
                attention_mask=attention_mask[:, :stop],
                position_ids=position_ids[:, start:stop] if give_positions else None,
                cache=cache,
            )
            logits.append(output.logits)
            start = stop
        chunked = torch.cat(logits, dim=1)
        assert chunked.isfinite().all()
        for row, kept in enumerate(attention_mask):
            if kept.any():
                expected = model(input_ids[row, kept][None]).logits[0]
                torch.testing.assert_close(chunked[row, kept], expected, atol=TOLERANCE, rtol=0)


def test_what_the_cache_holds_in_masked_columns_is_never_read(model: TinyForCausalLM) -> None:
    generator = torch.Generator().manual_seed(2)
    input_ids, attention_mask = random_ids(generator, 2, 9), torch.ones(2, 9, dtype=torch.bool)
    attention_mask[0, :3] = attention_mask[1, 4:6] = False
    with torch.no_grad():
        outputs = []
        for garbage in (0.0, -1e9):
            cache = DynamicCache(config=model.config)
            model(input_ids[:, :8], attention_mask=attention_mask[:, :8], cache=cache)
            hidden_columns = ~attention_mask[:, None, :8, None]
            for layer in cache.layers:
                layer.keys = layer.keys.masked_fill(hidden_columns, 1e-6 * garbage)
                layer.values = layer.values.masked_fill(hidden_columns, garbage)
            outputs.append(model(input_ids[:, 8:], attention_mask=attention_mask, cache=cache).logits)
    torch.testing.assert_close(outputs[0], outputs[1], atol=TOLERANCE, rtol=0)


def test_cache_rows_can_be_dropped_and_reordered(model: TinyForCausalLM) -> None:
    generator = torch.Generator().manual_seed(3)
    input_ids, rows = random_ids(generator, 5, 10), torch.tensor([4, 0, 2])
    for method in ("batch_select_indices", "reorder_cache"):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids[:, :6], cache=cache)
            getattr(cache, method)(rows)
            logits = model(input_ids[rows, 6:], cache=cache).logits
            torch.testing.assert_close(logits, model(input_ids[rows]).logits[:, 6:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("batch", [1, 2, 31, 256])
def test_rows_do_not_see_each_other(model: TinyForCausalLM, batch: int) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(batch), batch, 8)
    with torch.no_grad():
        together = model(input_ids).logits
        alone = torch.cat([model(row[None]).logits for row in input_ids])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)


def test_logits_to_keep(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(4), 3, 9)
    attention_mask = torch.ones(3, 9)
    attention_mask[1, :4] = 0
    indices = torch.tensor([0, 5, 8])
    with torch.no_grad():
        full = model(input_ids, attention_mask=attention_mask).logits
        for kept, expected in ((1, full[:, -1:]), (4, full[:, -4:]), (indices, full[:, indices])):
            logits = model(input_ids, attention_mask=attention_mask, logits_to_keep=kept).logits
            torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_loss_is_the_mean_negative_log_probability_of_labelled_tokens(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(5), 2, 6)
    labels = input_ids.clone()
    labels[0, 3] = labels[1, :5] = -100
    with torch.no_grad():
        output = model(input_ids, labels=labels)
    terms = [-output.logits[b, t - 1, input_ids[b, t]] for b, t in ((0, 1), (0, 2), (0, 4), (0, 5), (1, 5))]
    torch.testing.assert_close(output.loss, torch.stack(terms).mean())


def test_gradients_reach_every_parameter_and_no_masked_token(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(6), 2, 10)
    attention_mask = torch.ones(2, 10)
    attention_mask[0, :3] = attention_mask[1, 5:7] = 0
    embeddings: list[Tensor] = []
    hook = model.embed_tokens.register_forward_hook(lambda *call: embeddings.append(call[-1]) or call[-1].retain_grad())
    try:
        logits = model(input_ids, attention_mask=attention_mask).logits
    finally:
        hook.remove()
    logits[attention_mask.bool()][:, 7].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    model.zero_grad()
    (gradient,) = [embedding.grad for embedding in embeddings]
    assert gradient is not None
    assert not gradient[attention_mask == 0].any()
    assert gradient[attention_mask == 1].any()


def test_hidden_states_end_with_what_the_heads_read(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(7), 2, 5)
    with torch.no_grad():
        output = model(input_ids, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    torch.testing.assert_close(output.hidden_states[0], 4 * model.embed_tokens(input_ids))
    torch.testing.assert_close(output.hidden_states[-1], model.norm(output.hidden_states[-2]))
    assert model(input_ids).hidden_states is None


def test_a_cache_is_returned_when_asked_for(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(8), 2, 5)
    assert CACHE not in model(input_ids)
    cache = model(input_ids, use_cache=True)[CACHE]
    assert cache.get_seq_length() == 5
    torch.testing.assert_close(cache.layers[-1].values[:, 0, :, 0], input_ids.float())


def test_generate_of_transformers_works(model: TinyForCausalLM) -> None:
    prompt = random_ids(torch.Generator().manual_seed(9), 3, 6)
    attention_mask = torch.ones_like(prompt)
    attention_mask[0, :4] = 0
    generated = model.generate(
        prompt, attention_mask=attention_mask, max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    for row, kept in enumerate(attention_mask.bool()):
        ids = prompt[row, kept][None]
        for _ in range(5):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
        assert generated[row, 6:].tolist() == ids[0, -5:].tolist()


def test_save_and_load_by_auto_classes(model: TinyForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, TinyForCausalLM)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    assert loaded.config.hidden_size == model.config.hidden_size
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert loaded.lm_head.weight is loaded.embed_tokens.weight


def test_a_mask_that_does_not_cover_the_cache_is_refused(model: TinyForCausalLM) -> None:
    input_ids = random_ids(torch.Generator().manual_seed(10), 2, 5)
    cache = model(input_ids, use_cache=True)[CACHE]
    with pytest.raises(ValueError, match=r"expected an attention_mask of shape \(2, 6\)"):
        model(input_ids[:, :1], attention_mask=torch.ones(2, 1), cache=cache)


def test_default_size_is_tiny() -> None:
    parameters = sum(p.numel() for p in TinyForCausalLM(TinyConfig()).parameters())
    assert 100_000 <= parameters <= 3_000_000


def test_it_is_trained_in_bfloat16_as_other_models_are(tmp_path: Path) -> None:
    from agents import ppo
    from agents.config import ComputeConfig

    for engine in ("fast", "simple"):
        compute = ComputeConfig(device="cpu", precision="bf16", engine=engine)
        sizes = {"updates": 2, "rollouts_per_update": 16, "minibatch_size": 8}
        config = ppo.PPOConfig(run_dir=tmp_path / engine, compute=compute, **sizes)
        ppo.train(config)
        lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 2
        assert all(json.loads(line)["loss/logprob_mismatch"] < 0.1 for line in lines)


def test_what_samples_has_the_adapters(tmp_path: Path) -> None:
    """After the first update adapters are more than nothing, and both ways of sampling must know them."""
    pytest.importorskip("peft")
    from agents import grpo
    from agents.config import ComputeConfig, OptimizerConfig

    for engine in ("fast", "simple"):
        config = grpo.GRPOConfig(
            run_dir=tmp_path / engine,
            updates=2,
            rollouts_per_update=16,
            minibatch_size=8,
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_updates=0),
            env=replace(grpo.GRPOConfig().env, reward="format"),
            compute=ComputeConfig(device="cpu", lora_rank=2, engine=engine),
        )
        grpo.train(config)
        lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["loss/kl"] > 1e-4
        assert json.loads(lines[-1])["loss/logprob_mismatch"] < TOLERANCE
