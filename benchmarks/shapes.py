"""Models of known shapes with random weights, and a codec and an environment in which they search: for measuring speed.

A random model's tokens are nearly uniform over its vocabulary. `UniformCodec` reads them so that episodes look like
those of a trained agent: a token out of 64 closes a search, all others stand for text, so turns have 64 tokens on
average.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

from search_gym import Document, Question, SearchVectorEnv
from search_gym.codec import TokenIds

SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
QWEN_3B = {
    "vocab_size": 151_936,
    "hidden_size": 2_048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": True,
}
SMALL = {**SMOLLM2, "vocab_size": 512, "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 6, "num_key_value_heads": 2}
CHARACTERS_A_TOKEN = 4
CLOSES = 64
"""One token out of so many closes a search."""


def make_model(shape: dict[str, Any], device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights, made where it is to be."""
    kind = Qwen2Config if shape is QWEN_3B else LlamaConfig
    config = kind(**shape, pad_token_id=0, bos_token_id=None, eos_token_id=None)
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def small() -> tuple[PreTrainedModel, UniformCodec]:
    """A model for a CPU, and its codec."""
    return make_model(SMALL, "cpu", torch.float32), UniformCodec(SMALL["vocab_size"])


def smollm2() -> tuple[PreTrainedModel, UniformCodec]:
    """SmolLM2-135M's shape in float32 on the GPU, and its codec."""
    return make_model(SMOLLM2, "cuda", torch.float32), UniformCodec(SMOLLM2["vocab_size"])


def qwen_3b() -> tuple[PreTrainedModel, UniformCodec]:
    """Qwen2.5-3B's shape in float32 on the GPU, and its codec."""
    return make_model(QWEN_3B, "cuda", torch.float32), UniformCodec(QWEN_3B["vocab_size"])


class UniformCodec:
    """Reads a token out of `CLOSES` as ``</search>``, and writes text as one token for four characters."""

    pad_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_id = vocab_size  # no token ends a turn
        self._pieces = ["</search>" if i % CLOSES == 1 else f"<search>w{i} " for i in range(vocab_size)]

    def encode(self, text: str, *, allow_special: bool = False) -> TokenIds:
        count = -(-len(text) // CHARACTERS_A_TOKEN)
        return 2 + np.arange(count, dtype=np.int64) % (CLOSES - 2)

    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        return "".join([self._pieces[i] for i in ids])


class SlowRetriever:
    """Answers after ``seconds`` with documents of ``characters`` in all."""

    def __init__(self, seconds: float, characters: int) -> None:
        self._seconds = seconds
        self._documents = [Document(f"d{i}", "Title", "x" * (characters // 3)) for i in range(3)]

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        time.sleep(self._seconds)
        return [self._documents[:k] for _ in queries]


def make_envs(
    codec: UniformCodec,
    num_envs: int,
    *,
    retrieval_seconds: float = 0.001,
    max_turns: int = 3,
    turn_tokens: int = 128,
    observation_tokens: int = 200,
    prompt_tokens: int = 150,
) -> SearchVectorEnv:
    """Episodes of ``max_turns`` searches and a last turn, whose lengths are drawn from a geometric distribution.

    The reward is 1 for one episode in two.
    """
    text = "q" * (prompt_tokens * CHARACTERS_A_TOKEN)
    questions = [Question(f"q{i}", text, ("none",)) for i in range(1024)]
    envs = gym.make_vec(
        "search_gym/SearchQA-v0",
        num_envs=num_envs,
        questions=questions,
        retriever=SlowRetriever(retrieval_seconds, observation_tokens * CHARACTERS_A_TOKEN),
        codec=codec,
        prompt_fn=str,
        reward_fn=lambda outcome: float(len(outcome.text) % 2),
        max_turns=max_turns,
        max_turn_tokens=turn_tokens,
        max_observation_tokens=observation_tokens,
        max_context_tokens=8_192,
    )
    assert isinstance(envs, SearchVectorEnv)
    return envs
