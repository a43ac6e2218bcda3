"""Loading a causal language model together with the codec that fits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from agents.tiny import TinyConfig
from search_gym import tinywiki
from search_gym.codec import HFCodec, TokenCodec
from search_gym.errors import CodecError, SearchGymError, UnknownNameError
from search_gym.plugins import find_outside, require

TINY_BASE = Path(__file__).parent / "assets" / "tiny-base"


class CheckpointError(SearchGymError, ValueError):
    """A model's files are damaged or do not belong together, or there is something else in their place."""


def load_model(name_or_path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, TokenCodec]:
    """A model in eval mode, and its codec.

    Args:
        name_or_path: "tiny" for the shipped base model; a directory, such as a checkpoint of training; a ``.gguf``
            file, which is dequantised; a name on the Hugging Face hub; or ``"package.module:attribute"``, a function
            without arguments that returns the two.
        dtype: of the weights.

    Raises:
        UnknownNameError: there is no such model.
        CheckpointError: its weights are damaged or incomplete.
        CodecError: its vocabulary does not fit its codec.
        MissingDependencyError: a GGUF file needs the packages gguf and accelerate.
    """
    if isinstance(name_or_path, str) and ":" in name_or_path and not Path(name_or_path).exists():
        model, codec = find_outside(name_or_path)()
        return model.eval(), codec
    path = TINY_BASE if name_or_path == "tiny" else Path(name_or_path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise _unknown(name_or_path)
        model, codec = _load_gguf(path, dtype)
    else:
        source = str(path if path.is_dir() else name_or_path)
        model = load_weights(source, dtype)
        is_tiny = model.config.model_type == TinyConfig.model_type
        codec = tinywiki.codec() if is_tiny else HFCodec.from_pretrained(source)
    _check_vocabulary(model, codec, name_or_path)
    return model.eval(), codec


def _load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, TokenCodec]:
    require("accelerate", extra="agents")
    try:
        codec = HFCodec.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"expected a GGUF model in {path}, got {error}; do: download it again") from error
    # The weights are plain now; without this the model would refuse to be saved.
    model.hf_quantizer = None
    del model.config.quantization_config
    return model, codec


def load_weights(source: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a directory or the hub, without its codec.

    Raises:
        UnknownNameError: there is no such model. CheckpointError: its weights are damaged or incomplete.
    """
    try:
        config = AutoConfig.from_pretrained(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True)
        model, report = loaded
    except SafetensorError as error:
        raise CheckpointError(
            f"expected readable weights in {source}, got {error}; do: copy or save the model again"
        ) from error
    except (OSError, ValueError) as error:
        raise _unknown(source) from error
    absent = sorted(map(str, report["missing_keys"] | report["mismatched_keys"]))
    if absent:
        raise CheckpointError(
            f"expected every weight of {config.model_type} in {source}, got none or another shape for {absent}; "
            "do: copy or save the model again"
        )
    return model


def _unknown(name_or_path: str | Path) -> UnknownNameError:
    return UnknownNameError(
        "expected 'tiny', a directory with config.json and model.safetensors, a .gguf file, or a hub name that can be "
        f"reached, got {str(name_or_path)!r}; do: check the spelling and the path"
    )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _check_vocabulary(model: PreTrainedModel, codec: TokenCodec, name_or_path: str | Path) -> None:
    """Embeddings are often padded beyond the vocabulary, except those of the tiny model."""
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if rows < codec.vocab_size:
        raise CodecError(
            f"expected an embedding for each of the codec's {codec.vocab_size} ids, got {rows} in {name_or_path}; "
            "do: use the tokenizer that the model was trained with, or model.resize_token_embeddings(len(tokenizer))"
        )
    if model.config.model_type == TinyConfig.model_type and rows != codec.vocab_size:
        raise CodecError(
            f"expected a tiny model of this version's {codec.vocab_size} words, got one of {rows} in {name_or_path}; "
            "do: make it again with python -m agents.pretrain, then train again"
        )
