"""What a user brings: a Hugging Face model with its tokenizer in a directory, and questions and passages in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agents.tasks import EnvConfig
from tests.small_models import llama


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the words yes and no."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<eos>", *alphabet, "ye", "yes", "no"]
    vocab = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("y", "e"), ("ye", "s"), ("n", "o")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.fixture
def real_text(tmp_path: Path) -> tuple[Path, EnvConfig]:
    """A Hugging Face model and tokenizer in a directory, and questions and passages in files."""
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer), max_position_embeddings=2048)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    people = ("Ada", "Bo", "Cy", "Di")
    rows = [{"id": p, "question": f"where is {p}?", "golden_answers": [f"in {p}ville"]} for p in people]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = [{"id": p, "contents": f'"{p}"\n{p} is in {p}ville.'} for p in people]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    env = EnvConfig(
        questions=f"jsonl:{tmp_path / 'q.jsonl'}",
        corpus=tmp_path / "c.jsonl",
        split="all",
        top_k=2,
        max_turn_tokens=160,
        max_observation_tokens=200,
        max_context_tokens=2000,
    )
    return tmp_path, env
