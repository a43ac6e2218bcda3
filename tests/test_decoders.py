"""Decoders against the models that they were made from, whole sequences at once."""

from __future__ import annotations

import math

import pytest
import small_models
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agents import decoders
from agents.decoders import effective_weight, make_chunk
from agents.llama_decoder import LlamaDecoder
from agents.ops import Step, TorchOps
from agents.tiny import TinyConfig, TinyForCausalLM
from agents.tiny_cpu_decoder import TinyCpuDecoder
from agents.tiny_decoder import TinyDecoder

VOCAB = 50
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON = {**SIZES, "num_key_value_heads": 2, "vocab_size": VOCAB, "initializer_range": 0.2, "pad_token_id": 0}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, tie_word_embeddings=True)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, attention_bias=True)),
    "llama 3's positions": lambda: LlamaForCausalLM(LlamaConfig(**COMMON, rope_parameters=SCALED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**COMMON, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**COMMON)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**COMMON, head_dim=16)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **GEMMA)),
    "tiny": lambda: small_models.tiny(VOCAB),
    "tiny, in torch": lambda: small_models.tiny(VOCAB),
}


def load(model, request):
    """The decoder that there is for a model; of the tiny one there are two on a CPU."""
    return TinyDecoder(model) if request.node.callspec.params["model"] == "tiny, in torch" else decoders.load(model)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    for weight in made.parameters():
        if weight.ndim == 1:  # norms and biases that say something
            torch.nn.init.normal_(weight, 1.0, 0.2)
    return made


def log_probs(decoder, scores):
    """The distribution that `sample` takes ``scores`` for: logits, or probabilities of the tiny model."""
    return scores.log_softmax(-1) if isinstance(decoder, LlamaDecoder) else scores.log()


@torch.no_grad()
def test_rows_at_different_places_get_the_model_s_predictions(model, request):
    """Prompts in parts, rows of different lengths, a cache that is moved to more memory and a row to another."""
    ids = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids).logits.log_softmax(-1)
    decoder = load(model, request)
    decoder.allocate(3, 32)
    device = torch.device("cpu")
    decoder.prefill(torch.cat((ids[0, :9], ids[2, :4])), make_chunk([0, 2], [0, 0], [9, 4], device))
    decoder.prefill(torch.cat((ids[2, 4:7], ids[1, :1])), make_chunk([2, 1], [4, 0], [3, 1], device))
    decoder.allocate(4, 40)
    decoder.copy_rows([0], [3], 9)
    sequences = [0, 1, 2, 0]
    positions = torch.tensor([9, 1, 7, 9])
    for _ in range(10):
        tokens = ids[sequences, positions]
        step = Step((positions + 1).int(), int(positions.max()) + 1)
        found = log_probs(decoder, decoder.step(tokens, positions, step))
        torch.testing.assert_close(found, expected[sequences, positions], rtol=0, atol=5e-5)
        positions = positions + 1


@torch.no_grad()
def test_new_weights_are_taken_over(model, request):
    decoder = load(model, request)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    decoder.sync()
    decoder.allocate(1, 8)
    token, position = torch.tensor([7]), torch.tensor([0])
    found = log_probs(decoder, decoder.step(token, position, Step(torch.tensor([1], dtype=torch.int32), 1)))
    expected = model(input_ids=token[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_a_cpu_has_the_compiled_decoder_of_the_tiny_model():
    assert isinstance(decoders.load(small_models.tiny(VOCAB)), TinyCpuDecoder)
    odd = TinyForCausalLM(TinyConfig(vocab_size=VOCAB, hidden_size=12, num_attention_heads=2))
    assert isinstance(decoders.load(odd), TinyDecoder)


@torch.no_grad()
def test_threads_change_nothing_but_rounding():
    """Many more tokens than a tile holds, in runs that the threads share."""
    ids = torch.randint(0, VOCAB, (40, 12), generator=torch.Generator().manual_seed(3))
    chunk = make_chunk(range(40), [0] * 40, [12] * 40, torch.device("cpu"))
    positions = torch.full((40,), 12)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            decoder = decoders.load(small_models.tiny(VOCAB))
            decoder.allocate(40, 16)
            decoder.prefill(ids.flatten(), chunk)
            found.append(decoder.step(ids[:, 0], positions, Step((positions + 1).int(), 13)).clone())
        finally:
            torch.set_num_threads(before)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_weights_that_are_no_numbers_are_seen_in_what_is_sampled():
    """Machine code that takes numbers for finite would hide them."""
    model = small_models.tiny(VOCAB)
    with torch.no_grad():
        model.blocks[0].up.weight[0, 0] = math.nan
    decoder = decoders.load(model)
    decoder.allocate(1, 4)
    probs = decoder.step(torch.tensor([5]), torch.tensor([0]), Step(torch.tensor([1], dtype=torch.int32), 1))
    assert probs.isnan().all()


def test_models_that_are_not_known_have_no_decoder():
    assert decoders.load(small_models.gpt2(VOCAB)) is None
    assert not decoders.knows(small_models.gpt2(VOCAB))
    capped = small_models.llama(VOCAB)
    capped.config.final_logit_softcapping = 30.0
    assert decoders.load(capped) is None


def test_adapters_are_part_of_the_weight():
    peft = pytest.importorskip("peft")
    model = small_models.llama(VOCAB)
    options = peft.LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, options)
    layer = model.model.layers[0].self_attn.q_proj
    merged = effective_weight(layer)
    assert not torch.equal(merged, layer.base_layer.weight)
    x = torch.randn(3, merged.shape[1])
    torch.testing.assert_close(x @ merged.T, layer(x), rtol=1e-5, atol=1e-5)
    assert decoders.knows(adapted.base_model.model)


def test_memory_is_given_back_and_taken_again():
    decoder = decoders.load(small_models.llama(VOCAB), ops=TorchOps())
    tokens, chunk = torch.tensor([3, 5, 4]), make_chunk([0], [0], [3], torch.device("cpu"))
    step = Step(torch.tensor([4], dtype=torch.int32), 4)

    def states() -> torch.Tensor:
        decoder.allocate(1, 4)
        decoder.prefill(tokens, chunk)
        return decoder.step(torch.tensor([2]), torch.tensor([3]), step)

    before = states()
    decoder.free()
    assert (decoder.num_rows, decoder.capacity) == (0, 0)
    decoder.sync()
    torch.testing.assert_close(states(), before, rtol=0, atol=0)
