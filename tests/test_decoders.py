"""Decoders against the models that they were made from, whole sequences at once."""

from __future__ import annotations

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
}


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
def test_rows_at_different_places_get_the_model_s_predictions(model):
    """Prompts in parts, rows of different lengths, a cache that is moved to more memory and a row to another."""
    ids = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids).logits.log_softmax(-1)
    decoder = decoders.load(model)
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
def test_new_weights_are_taken_over(model):
    decoder = decoders.load(model)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    decoder.sync()
    decoder.allocate(1, 8)
    token, position = torch.tensor([7]), torch.tensor([0])
    found = log_probs(decoder, decoder.step(token, position, Step(torch.tensor([1], dtype=torch.int32), 1)))
    expected = model(input_ids=token[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


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


def test_memory_is_given_back():
    decoder = decoders.load(small_models.llama(VOCAB), ops=TorchOps())
    decoder.allocate(2, 8)
    decoder.free()
    assert (decoder.num_rows, decoder.capacity) == (0, 0)
    decoder.allocate(1, 4)
    assert (decoder.num_rows, decoder.capacity) == (1, 4)
