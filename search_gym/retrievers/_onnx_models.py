"""Encoders and cross-encoders in ONNX files, on onnxruntime and the tokenizers library, without torch."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search_gym.errors import OptionError
from search_gym.plugins import require
from search_gym.retrievers._models import Batch, Compute, Floats, num_threads
from search_gym.retrievers._presets import Pooling

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class OnnxModel:
    """A transformer in the file ``path`` with ``tokenizer.json`` in ``folder``; the file says its precision."""

    def __init__(self, folder: Path, path: Path, compute: Compute) -> None:
        """Raises OptionError: files that are missing, damaged or of another kind, or no such device or precision."""
        runtime = require("onnxruntime", extra="onnx")
        tokenizers = require("tokenizers", extra="onnx")
        if compute.precision != "fp32":
            raise OptionError(f"expected no precision for an ONNX model, got {compute.precision}; do: leave it out")
        providers = _providers(runtime, compute.device)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads(compute.threads)
        options.log_severity_level = 3
        try:
            # Both libraries have only exceptions of their own, children of Exception itself.
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session: Any = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            raise OptionError(f"expected tokenizer.json and a model in {folder}, got {error}; do: check it") from error
        self._inputs = [each.name for each in self._session.get_inputs()]
        if not set(self._inputs) <= set(_INPUTS):
            raise OptionError(
                f"expected inputs among {_INPUTS} in {path}, got {self._inputs}; do: export it with these"
            )
        self._outputs = {len(each.shape): each.name for each in reversed(self._session.get_outputs())}
        self._path = path
        self.is_batch_dependent = quantizes_as_it_runs(path)
        self.pad_id = _pad_id(self._tokenizer)
        self._tokenizer.no_padding()

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[dict[str, list[int]]]:
        """See `Model`."""
        self._tokenizer.enable_truncation(max_length)
        both = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return [
            {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
            for row in self._tokenizer.encode_batch(both)
        ]

    def _run(self, batch: Batch, rank: int) -> Floats:
        """The first output with ``rank`` dimensions."""
        if rank not in self._outputs:
            what = "a last layer (n, t, d)" if rank == 3 else "logits (n, labels)"
            raise OptionError(
                f"expected {what} among the outputs of {self._path}, got none; do: export it for this use"
            )
        return self._session.run([self._outputs[rank]], {name: batch[name] for name in self._inputs})[0]

    def pooled(self, batch: Batch, pooling: Pooling) -> Floats:
        """See `Model`."""
        hidden = self._run(batch, 3).astype(np.float32, copy=False)
        if pooling == "cls":
            return hidden[:, 0]
        weights = batch["attention_mask"][..., None].astype(np.float32)
        return (hidden * weights).sum(1) / weights.sum(1)

    def logits(self, batch: Batch) -> Floats:
        """See `Model`."""
        return self._run(batch, 2).astype(np.float32, copy=False)


def quantizes_as_it_runs(path: Path) -> bool:
    """Whether the graph in ``path`` holds a dynamic quantisation, whose scale is that of a whole tensor."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"DynamicQuantize") != -1


def _providers(runtime: Any, device: str) -> list[str]:
    has_gpu = "CUDAExecutionProvider" in runtime.get_available_providers()
    if device == "cpu" or (device == "auto" and not has_gpu):
        return ["CPUExecutionProvider"]
    if device in ("auto", "cuda") and has_gpu:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    raise OptionError(f"expected a device that onnxruntime has here, got {device!r}; do: use auto or cpu")


def _pad_id(tokenizer: Any) -> int:
    if tokenizer.padding is not None:
        return tokenizer.padding["pad_id"]
    found = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>"))
    return next((token_id for token_id in found if token_id is not None), 0)
