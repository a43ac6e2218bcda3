"""Encoders and cross-encoders of the Hugging Face hub on torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from search_gym.errors import OptionError
from search_gym.plugins import require
from search_gym.retrievers._models import Batch, Compute, Floats
from search_gym.retrievers._presets import Pooling


class TorchModel:
    """A transformer that torch runs; ``task`` "encode" needs its last layer, "score" the head of a classifier."""

    is_batch_dependent = False

    def __init__(self, folder: Path, task: Literal["encode", "score"], compute: Compute) -> None:
        """Raises OptionError: no model in ``folder``, or one that the device cannot run with this precision."""
        self._torch: Any = require("torch", extra="dense")
        transformers = require("transformers", extra="dense")
        self.device = self._find_device(compute.device)
        if compute.precision == "fp16" and self.device.type == "cpu":
            raise OptionError("expected a GPU for precision fp16, got a CPU; do: use fp32, or bf16 where it is fast")
        dtypes = {"fp32": self._torch.float32, "fp16": self._torch.float16, "bf16": self._torch.bfloat16}
        kind = transformers.AutoModel if task == "encode" else transformers.AutoModelForSequenceClassification
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self._model = kind.from_pretrained(folder, dtype=dtypes[compute.precision]).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise OptionError(f"expected a model in {folder}, got {error}; do: check the directory") from error
        # Positions beyond the table would be an index error; RoBERTa's table has two entries more than positions.
        self._longest = min(self._model.config.max_position_embeddings, self._tokenizer.model_max_length)

    def _find_device(self, name: str) -> Any:
        if name == "auto":
            name = "cuda" if self._torch.cuda.is_available() else "cpu"
        try:
            device = self._torch.device(name)
            self._torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise OptionError(f"expected a device that torch has here, got {name!r}: {error}; do: auto") from error
        return device

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_token_id or 0

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[dict[str, list[int]]]:
        """See `Model`."""
        both = (list(texts),) if pairs is None else (list(texts), list(pairs))
        columns = self._tokenizer(*both, truncation=True, max_length=min(max_length, self._longest))
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        return {name: self._torch.from_numpy(values).to(self.device) for name, values in batch.items()}

    def pooled(self, batch: Batch, pooling: Pooling) -> Floats:
        """See `Model`."""
        with self._torch.inference_mode():
            inputs = self._inputs(batch)
            hidden = self._model(**inputs).last_hidden_state.float()
            if pooling == "cls":
                vectors = hidden[:, 0]
            else:
                weights = inputs["attention_mask"].unsqueeze(-1).float()
                vectors = (hidden * weights).sum(1) / weights.sum(1)
            return vectors.cpu().numpy()

    def logits(self, batch: Batch) -> Floats:
        """See `Model`."""
        with self._torch.inference_mode():
            return np.asarray(self._model(**self._inputs(batch)).logits.float().cpu())
