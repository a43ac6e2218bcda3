"""What encoders and cross-encoders share: where their files are, how they compute, and batches sorted by length."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from search_gym.errors import OptionError
from search_gym.plugins import require
from search_gym.retrievers._presets import Pooling

Floats = npt.NDArray[np.float32]
Batch = Mapping[str, npt.NDArray[np.int64]]
Runtime = Literal["torch", "onnx"]
_CONFIGURATION = ["*.json", "*.txt", "*.model"]
_ONNX_FILES = ("model.onnx", "onnx/model.onnx")


@dataclass(frozen=True)
class Compute:
    """How a model is run: ``device`` is "auto" (a GPU if there is one) or one of torch's, ``precision`` "fp32", "fp16"
    or "bf16", ``batch_size`` texts at a time on ``threads`` of the CPU (None: as the runtime has it)."""

    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 64
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "fp16", "bf16"):
            raise OptionError(f"expected precision fp32, fp16 or bf16, got {self.precision!r}; do: choose one of them")
        if self.batch_size < 1 or (self.threads is not None and self.threads < 1):
            raise OptionError(
                f"expected batch_size >= 1 and threads >= 1, got {self.batch_size} and {self.threads}; do: correct them"
            )


class Model(Protocol):
    """A transformer with its tokenizer.

    ``is_batch_dependent``: what it computes for a text depends on the other texts of its batch by more than rounding.
    """

    is_batch_dependent: bool

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
    ) -> list[dict[str, list[int]]]:
        """The model's inputs for each text, or for each text and its pair, cut at ``max_length`` tokens."""
        ...

    @property
    def pad_id(self) -> int: ...

    def pooled(self, batch: Batch, pooling: Pooling) -> Floats:
        """Vectors (n, d) from inputs (n, t): the last layer's mean over the tokens, or its first token ("cls")."""
        ...

    def logits(self, batch: Batch) -> Floats:
        """Scores (n, labels) from inputs (n, t)."""
        ...


def local_folder(model: str, runtime: Runtime | None) -> Path:
    """The folder with the files of ``model``, a directory or a name on the Hugging Face hub, downloaded if need be.

    Raises:
        OptionError: there is no such model, or it cannot be reached.
    """
    if Path(model).is_dir():
        return Path(model).resolve()
    hub = require("huggingface_hub", extra="dense")
    try:
        folder = Path(hub.snapshot_download(model, allow_patterns=_CONFIGURATION))
        if runtime == "onnx":
            return Path(hub.snapshot_download(model, allow_patterns=[*_CONFIGURATION, *_ONNX_FILES]))
        hub.snapshot_download(model, allow_patterns=["model*.safetensors"])
        if not any(folder.glob("model*.safetensors")):
            hub.snapshot_download(model, allow_patterns=["pytorch_model*.bin"])
    except (OSError, ValueError) as error:
        raise OptionError(
            f"expected a model's directory or its name on the Hugging Face hub, got {model!r}: {error}; "
            "do: correct the name, or download the model and name its directory"
        ) from error
    return folder


def load_model(model: str, runtime: Runtime | None, task: Literal["encode", "score"], compute: Compute) -> Model:
    """The model in a directory or on the hub; ``runtime`` None is torch, but for a directory with an ONNX file alone.

    Raises:
        OptionError: there is none, or it cannot be used like this. MissingDependencyError: no such runtime.
    """
    if runtime not in (None, *get_args(Runtime)):
        raise OptionError(f"expected a runtime among {get_args(Runtime)}, got {runtime!r}; do: correct it")
    folder = local_folder(model, runtime)
    if (runtime or find_runtime(folder)) == "onnx":
        from search_gym.retrievers._onnx_models import OnnxModel

        return OnnxModel(folder, onnx_file(folder), compute)
    from search_gym.retrievers._torch_models import TorchModel

    return TorchModel(folder, task, compute)


def find_runtime(folder: Path) -> Runtime:
    """What can run the model in ``folder``: torch if there are weights for it."""
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return "torch" if has_weights or not any((folder / name).is_file() for name in _ONNX_FILES) else "onnx"


def onnx_file(folder: Path) -> Path:
    """Raises OptionError: ``folder`` has none."""
    for name in _ONNX_FILES:
        if (folder / name).is_file():
            return folder / name
    raise OptionError(f"expected {_ONNX_FILES[0]} in {folder}, got none; do: export the model, or use runtime=torch")


def num_threads(threads: int | None) -> int:
    """``threads``, or as many as OMP_NUM_THREADS or the machine says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(said) if said.isdecimal() and int(said) else os.cpu_count() or 1)


def clean(text: str) -> str:
    """``text`` as tokenizers accept it: surrogates without a partner, which UTF-8 cannot hold, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def run_in_batches(
    model: Model, inputs: Sequence[dict[str, list[int]]], batch_size: int, forward: Callable[[Batch], Floats]
) -> Floats:
    """``forward`` of all ``inputs`` in their order, computed in batches of similar lengths, the longest first.

    A model with int8 weights whose activations are quantised as it runs finds their scale in the whole batch; it is
    asked about one text at a time, so that no answer depends on other questions.
    """
    if model.is_batch_dependent:
        batch_size = 1
    lengths = np.array([len(row["input_ids"]) for row in inputs])
    order = np.argsort(-lengths, kind="stable")
    parts = [
        forward(_pad([inputs[i] for i in order[start : start + batch_size]], model.pad_id))
        for start in range(0, len(order), batch_size)
    ]
    together = np.concatenate(parts)
    results = np.empty_like(together)
    results[order] = together
    return results


def _pad(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, npt.NDArray[np.int64]]:
    longest = max(1, *(len(row["input_ids"]) for row in rows))
    batch = {name: np.zeros((len(rows), longest), dtype=np.int64) for name in rows[0]}
    batch["input_ids"].fill(pad_id)
    for i, row in enumerate(rows):
        for name, values in row.items():
            batch[name][i, : len(values)] = values
    return batch
