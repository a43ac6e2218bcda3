"""How fast are rollouts on a GPU? Decoding, whole search episodes, and a round of training at the paper's size.

    python -m benchmarks.engine_speed                     # on a GPU, under 10 minutes, no download
    python -m benchmarks.engine_speed --parts decode --shape small --device cpu

Parts, each of which compares what it compares in one run:

``check``: the fast engine's tokens and log-probabilities against the simple engine's, in float32.
``decode``: tokens per second with 256 slots around 512 tokens of context, beside Hugging Face's ``generate``.
``rollouts``: whole episodes of three searches and a last turn with a 1 ms retriever, beside the reference's method:
each turn ``generate`` prefills the whole context and goes on to the limit, and what follows the closing tag is cut.
``retriever``: the share of the wall time that a 50 ms retriever costs, against one that answers at once.
``update``: tokens per second of a policy gradient over 32 rollouts of 1,024 tokens, all of them sampled, beside plain
``forward`` and ``backward`` with a log-softmax of all logits; memory of both.
``paper``: one round of PPO and one of GRPO for random weights of Qwen2.5-3B's shape, with the trainer itself.

Models have random weights; `benchmarks.shapes` says how their tokens are read. Writes one JSON file, in which other
parts that were measured on the same device stay as they are, and with its default name the tables of docs/speed.md and
docs/scale.md.
"""

from __future__ import annotations

import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from transformers.utils.logging import disable_progress_bar

from agents.runlog import command_line, write_json
from benchmarks.engine_page import write_pages
from benchmarks.rollout_speed import check, decode, retriever, rollouts
from benchmarks.shapes import SMALL, SMOLLM2, UniformCodec, make_model
from benchmarks.update_speed import paper, update

RESULTS = Path(__file__).parent / "results/engine_speed.json"
Part = Literal["check", "decode", "rollouts", "retriever", "update", "paper"]


@dataclass(frozen=True)
class EngineSpeedConfig:
    """Options of the benchmark."""

    parts: tuple[Part, ...] = ("check", "decode", "rollouts", "retriever", "update", "paper")
    """What to measure."""
    shape: Literal["smollm2", "small"] = "smollm2"
    """Model of the first four parts: SmolLM2-135M's shape, or one that a CPU can bear."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where to run."""
    slots: int = 256
    """Episodes at a time."""
    context: int = 512
    """Mean tokens of context in ``decode``."""
    tokens: int = 128
    """Tokens that each slot decodes in ``decode``, half of them before the mean context and half after it."""
    update_rows: int = 32
    """Rollouts in ``update``."""
    update_tokens: int = 1024
    """Tokens of each of them."""
    compile: bool = True
    """Compile layers in ``update`` on a GPU."""
    paper_rollouts: int = 32
    """Episodes in a round of ``paper``."""
    output: Path = RESULTS
    """The JSON file to write; with the default the tables of the documentation are made anew too."""


class Bench:
    """The models and the clock of a run."""

    def __init__(self, config: EngineSpeedConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.shape = SMOLLM2 if config.shape == "smollm2" else SMALL
        self.codec = UniformCodec(self.shape["vocab_size"])
        self._model: Any = None

    @property
    def model(self) -> Any:
        """The model of the first parts; made when it is asked for."""
        if self._model is None:
            self._model = make_model(self.shape, self.config.device, self.dtype)
        return self._model

    def seconds(self, function: Callable[[], Any]) -> float:
        """Wall time, what the device has to do included."""
        self.wait()
        began = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self) -> float | None:
        """The most memory that tensors took since the last call."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return round(peak, 2)


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "check": check,
    "decode": decode,
    "rollouts": rollouts,
    "retriever": retriever,
    "update": update,
    "paper": paper,
}


def main(config: EngineSpeedConfig) -> dict[str, Any]:
    """Measure, write the file after every part, and return what it holds."""
    bench = Bench(config)
    on_gpu = bench.device.type == "cuda"
    where = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
    }
    results: dict[str, Any] = {**where, **measured_before(config.output, where)}
    for part in config.parts:
        began = time.perf_counter()
        try:
            results[part] = PARTS[part](bench)
        except Exception:  # what the other parts measure is still worth having
            traceback.print_exc()
            results[part] = {"failed": traceback.format_exc(limit=1).splitlines()[-1]}
        results[part] |= {"benchmark_seconds": round(time.perf_counter() - began, 1), "command": command_line()}
        print(part, results[part], flush=True)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.output, results)
    return results


def measured_before(path: Path, where: Mapping[str, Any]) -> dict[str, Any]:
    """The parts in the file at ``path``, if it comes from the same device and torch."""
    if not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if any(earlier.get(name) != value for name, value in where.items()):
        return {}
    return {name: found for name, found in earlier.items() if name in PARTS}


if __name__ == "__main__":
    disable_progress_bar()
    config = tyro.cli(EngineSpeedConfig, prog="python -m benchmarks.engine_speed", description=__doc__)
    main(config)
    if config.output == RESULTS:
        write_pages(json.loads(RESULTS.read_text(encoding="utf-8")))
