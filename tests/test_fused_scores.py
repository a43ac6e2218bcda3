"""Scores from hidden states in chunks, against a softmax over all logits at once."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import plain_scores
from agents.forward import has_plain_head
from agents.fused_scores import token_scores
from agents.policy import CausalLMWithValueHead, evaluate_tokens, token_logprobs

WIDTH, VOCAB = 6, 11


def draw(seed, count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, WIDTH, generator=generator, dtype=dtype)
    weight = torch.randn(VOCAB, WIDTH, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), generator


def reference(hidden, weight, token_ids, temperature, vocab_size):
    log_probs = (hidden @ weight[:vocab_size].T / temperature).log_softmax(-1)
    return log_probs.gather(-1, token_ids[:, None]).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from([0.6, 1.0, 1.9]),
    st.sampled_from([None, 7]),
)
def test_equals_the_softmax_of_all_in_value_and_gradient(seed, count, chunk_numbers, temperature, vocab_size):
    """In float64; scores of up to 20 are off by 1e-6 in float32."""
    hidden, weight, generator = draw(seed, count)
    token_ids = torch.randint(0, vocab_size or VOCAB, (count,), generator=generator)
    pulls = torch.randn(2, count, generator=generator)

    def outcome(function, dtype, **options):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (hidden, weight)]
        scores = function(*leaves, token_ids, temperature, vocab_size=vocab_size, **options)
        sum((score * pull).sum() for score, pull in zip(scores, pulls, strict=True)).backward()
        return [*(score.detach() for score in scores), *(leaf.grad for leaf in leaves)]

    expected = outcome(lambda *args, vocab_size: reference(*args, vocab_size or VOCAB), torch.float64)
    actual = outcome(token_scores, torch.float32, chunk_numbers=chunk_numbers)
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_entropies_have_a_gradient_only_if_asked():
    hidden, weight, _ = draw(0, 4)
    ids = torch.tensor([1, 2, 3, 4])
    logprobs, entropies = token_scores(hidden, weight, ids, 1.0, entropy_grad=False)
    assert logprobs.requires_grad
    assert not entropies.requires_grad


def test_no_token_at_all():
    hidden, weight, _ = draw(0, 0)
    logprobs, entropies = token_scores(hidden, weight, torch.zeros(0, dtype=torch.int64), 1.0)
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()
    assert not weight.grad.any()


def test_the_type_of_autocast_is_that_of_the_products_alone():
    """Products in bfloat16 are products of rounded numbers, rounded: a logit, a sum of six products of numbers near 1,
    is off by about 2**-9 of itself."""
    hidden, weight, _ = draw(3, 8)
    ids = torch.arange(8)
    with torch.autocast("cpu", torch.bfloat16):
        scores = token_scores(hidden, weight, ids, 1.0, chunk_numbers=30)
    exact = reference(hidden.bfloat16().float(), weight.bfloat16().float(), ids, 1.0, VOCAB)
    for actual, wanted in zip(scores, exact, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0.05)
        assert not torch.equal(actual, wanted)


@pytest.mark.parametrize("name", ["llama", "sliding"])
def test_a_model_with_a_plain_head_takes_this_path(name, monkeypatch):
    model = getattr(small_models, name)(VOCAB)
    assert has_plain_head(model)
    ids = torch.randint(0, 9, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 5:] = False
    loss_mask = mask.clone()
    loss_mask[:, 0] = False
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    expected = token_logprobs(logits, ids, 0.8, vocab_size=9)

    def no_logits(*args, **options):
        raise AssertionError("all logits were asked for")

    monkeypatch.setattr(model.lm_head, "forward", no_logits)
    scores = evaluate_tokens(model, ids, mask, loss_mask, 0.8, vocab_size=9)
    torch.testing.assert_close(scores.logprobs[loss_mask], expected[loss_mask], rtol=0, atol=1e-5)
    assert not scores.logprobs[~loss_mask].any()
    values = CausalLMWithValueHead(model, vocab_size=9).evaluate_tokens(ids, mask, loss_mask, 0.8)
    assert torch.equal(values.logprobs, scores.logprobs)


def test_models_whose_logits_are_more_than_a_product_do_not(monkeypatch):
    assert not has_plain_head(small_models.tiny(VOCAB))
    assert not has_plain_head(small_models.gpt2(VOCAB))
    capped = small_models.llama(VOCAB)
    capped.config.final_logit_softcapping = 30.0
    assert not has_plain_head(capped)


KERNELS = """
import torch
from agents import plain_scores, triton_scores
torch.manual_seed(0)
for shape, scale in (((5, 9000), 0.7), ((3, 50), 1.0)):
    logits, ids = torch.randn(shape) * 3, torch.randint(0, shape[1], shape[:1])
    expected = plain_scores.read(logits, ids, scale)
    for a, b in zip(triton_scores.read(logits, ids, scale), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)
    pulls = torch.randn(2, shape[0])
    arguments = ids, scale, expected[2], expected[1], *pulls
    wanted = plain_scores.differentiate(logits, *arguments)
    torch.testing.assert_close(triton_scores.differentiate(logits.clone(), *arguments), wanted, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which comes with torch for GPUs")
def test_kernels_equal_plain_torch():
    """In Triton's interpreter, which runs kernels on a CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", KERNELS], env=environment, check=True)


def test_the_gradient_of_plain_scores_is_autograds():
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    ids, pulls = torch.tensor([0, 3, 8, 3]), torch.randn(2, 4)
    logprobs, entropies, logsumexp = plain_scores.read(logits, ids, 1.3)
    (logprobs * pulls[0] + entropies * pulls[1]).sum().backward()
    found = plain_scores.differentiate(logits.detach(), ids, 1.3, logsumexp.detach(), entropies.detach(), *pulls)
    torch.testing.assert_close(found, logits.grad, rtol=1e-4, atol=1e-5)
