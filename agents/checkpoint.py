"""A policy as a Hugging Face model directory that appears complete or not at all; tensors are safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agents.directories import hidden, replace_directory
from agents.models import CheckpointError, load_model, load_weights
from agents.policy import CausalLMPolicy, CausalLMWithValueHead
from search_gym.codec import HFCodec, TokenCodec

VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_FOLDER = "critic"


def save_policy(directory: Path, policy: CausalLMPolicy, codec: TokenCodec) -> None:
    """Write ``policy`` to ``directory``, which appears complete or not at all.

    The directory holds config.json, model.safetensors and, if the policy and the codec have them,
    value_head.safetensors, the critic's model and the tokenizer's files; ``load_model`` reads it too. A checkpoint that
    was there before is replaced; see `directories.replace_directory` for what a crash at the worst moment leaves.

    Raises:
        CheckpointError: ``directory`` exists and holds something else.
    """
    if directory.exists() and not (directory / "config.json").is_file():
        raise CheckpointError(
            f"expected a checkpoint or nothing at {directory}, got something else; do: choose another directory"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    new = hidden(directory, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        policy.model.save_pretrained(new)
        if isinstance(policy, CausalLMWithValueHead):
            head = {name: weight.detach().cpu().contiguous() for name, weight in policy.value_head.state_dict().items()}
            save_file(head, new / VALUE_HEAD_FILE)
            if policy.critic is not None:
                policy.critic.save_pretrained(new / CRITIC_FOLDER)
        if isinstance(codec, HFCodec):
            codec.tokenizer.save_pretrained(new)
        replace_directory(new, directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def load_policy(
    name_or_path: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[CausalLMWithValueHead, TokenCodec]:
    """A policy and its codec: a saved checkpoint, or any model that ``load_model`` knows, with a new value head.

    Raises:
        CheckpointError: the value head is damaged or belongs to another model; and all that ``load_model`` raises.
    """
    directory, aside = Path(name_or_path), hidden(Path(name_or_path), "old")
    if aside.is_dir() and not directory.exists():
        name_or_path = aside
    model, codec = load_model(name_or_path, dtype)
    folder = Path(name_or_path, CRITIC_FOLDER)
    critic = load_weights(str(folder), dtype).eval() if folder.is_dir() else None
    policy = CausalLMWithValueHead(model, vocab_size=codec.vocab_size, critic=critic)
    path = Path(name_or_path, VALUE_HEAD_FILE)
    if path.is_file():
        try:
            policy.value_head.load_state_dict(load_file(path, device=str(model.device)))
        except (SafetensorError, RuntimeError) as error:
            raise CheckpointError(
                f"expected the value head of a model of width {policy.value_head.in_features} in {path}, got {error}; "
                "do: restore the checkpoint, or delete this file to start with a new value head"
            ) from error
    return policy, codec
