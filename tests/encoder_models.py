"""Encoders and cross-encoders, real but for their size and their random weights, written as the hub has them."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:?!\"'"
WORDS = ("juden", "plard", "kanor", "harbour", "born", "mayor", "query", "passage", "the", "of", "town")
LENGTH = 64
DIMENSION = 32


def write_encoder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: Mapping[str, str] | None = None,
    is_described: bool = True,
) -> Path:
    """A Bert of two layers in ``folder``, with sentence-transformers' files beside it unless not ``is_described``."""
    torch.manual_seed(seed)
    BertModel(_config(), add_pooling_layer=False).save_pretrained(folder)
    _write_tokenizer(folder)
    if is_described:
        names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
        paths = ["", "1_Pooling", "2_Normalize"]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(zip(names, paths, strict=False))
        ]
        (folder / "1_Pooling").mkdir()
        _write(folder / "modules.json", modules)
        flags = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
        ways = {f"pooling_mode_{flag}": way == pooling for way, flag in flags.items()}
        _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": DIMENSION, **ways})
        _write(folder / "sentence_bert_config.json", {"max_seq_length": LENGTH, "do_lower_case": False})
        _write(folder / "config_sentence_transformers.json", {"prompts": prompts or {}})
    return folder


def write_cross_encoder(folder: Path, *, seed: int = 0, num_labels: int = 1) -> Path:
    """A Bert of two layers with the head of a classifier."""
    torch.manual_seed(seed)
    BertForSequenceClassification(_config(num_labels=num_labels)).save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _config(**options: Any) -> BertConfig:
    # Weights large enough for every word and its place to matter.
    sizes = {"hidden_size": DIMENSION, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vocabulary = len(_vocabulary())
    return BertConfig(vocab_size=vocabulary, max_position_embeddings=LENGTH, initializer_range=0.3, **sizes, **options)


def _vocabulary() -> dict[str, int]:
    pieces = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    return {piece: i for i, piece in enumerate(pieces)}


def _write_tokenizer(folder: Path) -> None:
    vocabulary = _vocabulary()
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )
    tokenizer.save_pretrained(folder)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


class _Outputs(torch.nn.Module):
    """The model with one tensor as its output, as ONNX has it."""

    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return outputs[self.output]


def export(source: Path, target: Path, *, is_int8: bool = False) -> Path:
    """The model in ``source`` as ``target/model.onnx``; with int8, activations are quantised as it runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    is_classifier = "SequenceClassification" in (source / "config.json").read_text(encoding="utf-8")
    kind, output = (BertForSequenceClassification, "logits") if is_classifier else (BertModel, "last_hidden_state")
    model = _Outputs(kind.from_pretrained(source, attn_implementation="eager"), output).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    axes = {name: {0: "n", 1: "t"} for name in names} | {output: {0: "n"} if is_classifier else {0: "n", 1: "t"}}
    target.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing has a successor that needs another package
        torch.onnx.export(
            model,
            (torch.full((2, 5), 7), mask, torch.zeros(2, 5, dtype=torch.long)),
            str(target / "model.onnx"),
            dynamo=False,
            input_names=names,
            output_names=[output],
            dynamic_axes=axes,
            opset_version=17,
        )
    if is_int8:
        logging.getLogger().setLevel(logging.ERROR)
        (target / "model.onnx").rename(target / "exact.onnx")
        quantize_dynamic(target / "exact.onnx", target / "model.onnx", weight_type=QuantType.QInt8)
        (target / "exact.onnx").unlink()
    shutil.copy(source / "tokenizer.json", target)
    return target


class HashingEncoder:
    """Every word has a random vector; a text's is their sum, of length 1. ``salt`` is another such encoder."""

    def __init__(self, dimension: int = 16, salt: int = 0) -> None:
        self.dimension = dimension
        self.salt = salt

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "hashing", "salt": self.salt}

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self._one(text) for text in texts], dtype=np.float32).reshape(-1, self.dimension)

    encode_passages = encode_queries

    def _one(self, text: str) -> np.ndarray:
        total = np.zeros(self.dimension)
        for word in ["", *text.lower().split()]:
            seed = [self.salt, *word.encode("utf-8", "surrogatepass")]
            total += np.random.default_rng(seed).standard_normal(self.dimension)
        return total / np.linalg.norm(total)


def hashing() -> HashingEncoder:
    return HashingEncoder()


def hashing_with_salt() -> HashingEncoder:
    return HashingEncoder(salt=1)


class _Undescribed(HashingEncoder):
    """It says that it is `hashing`, and is not."""

    @property
    def description(self) -> dict[str, Any]:
        return {"kind": "hashing", "salt": 0}


def impostor() -> HashingEncoder:
    return _Undescribed(salt=2)


class _Broken(HashingEncoder):
    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        vectors = super().encode_queries(texts)
        vectors[["nan" in text for text in texts]] = np.nan
        return vectors


def broken() -> HashingEncoder:
    """NaN for a text that holds "nan"."""
    return _Broken()


def no_encoder() -> object:
    return object()
