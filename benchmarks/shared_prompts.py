"""What an update gains when prompts that rollouts begin with are computed once.

    python -m benchmarks.shared_prompts                                   # a minute on a CPU
    python -m benchmarks.shared_prompts --shape smollm2 --device cuda     # SmolLM2-135M's shape on a GPU

Forward and backward of `agents.policy.evaluate_tokens`, two ways in one run that take turns: every rollout whole, and
prompts computed once (`agents/shared_prompts.py`). Next to the measured ratio of times stands the one that counted
multiplications predict, by which a run decides. Losses and gradients of both ways are compared too. Writes one JSON
file, and with its default name the table of docs/training.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch

import torch
import tyro
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedModel

from agents import shared_prompts
from agents.policy import evaluate_tokens
from agents.runlog import command_line, write_json
from agents.shared_prompts import AT_MOST, relative_work
from benchmarks.pages import put
from benchmarks.runs import machine
from benchmarks.shapes import SMALL, SMOLLM2, make_model

RESULTS = Path(__file__).parent / "results/shared_prompts.json"
PAGE = Path(__file__).parents[1] / "docs/training.md"


class Case(NamedTuple):
    """``size`` rollouts of ``tokens`` that begin with each prompt of ``prompt`` tokens."""

    prompt: int
    tokens: int
    size: int


CASES = {
    "an answer at once": Case(100, 112, 8),
    "documents in the prompt": Case(250, 265, 8),
    "the same, two of a group in a mini-batch": Case(250, 265, 2),
    "a worked example, then searches": Case(400, 800, 8),
    "short searches": Case(100, 400, 8),
    "long searches": Case(150, 1000, 8),
}
ROWS = 8
SAMPLED = 4
"""One token in so many after the prompt was sampled; documents are the others."""


@dataclass(frozen=True)
class SharedPromptsConfig:
    """Options of the benchmark."""

    shape: Literal["small", "smollm2"] = "small"
    """Model: one that a CPU can bear, or SmolLM2-135M's shape."""
    layers: int | None = None
    """Layers, if not all of the shape's."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs; on a GPU in bfloat16."""
    threads: int = 1
    """Torch's CPU threads."""
    cases: tuple[str, ...] = tuple(CASES)
    """What to measure."""
    rounds: int = 7
    """Times that each way is measured; medians are kept."""
    output: Path = RESULTS
    """The JSON file to write."""


class Update:
    """Forward and backward over the rollouts of one case."""

    def __init__(self, model: PreTrainedModel, case: Case) -> None:
        self.model, self.case = model, case
        vocab = model.config.get_text_config().vocab_size
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(2, vocab, (ROWS // case.size, case.prompt), generator=generator)
        rest = torch.randint(2, vocab, (ROWS, case.tokens - case.prompt), generator=generator)
        self.ids = torch.cat((prompts.repeat_interleave(case.size, dim=0), rest), dim=1).to(model.device)
        self.real = torch.ones_like(self.ids, dtype=torch.bool)
        after = torch.arange(case.tokens, device=model.device) - case.prompt
        self.sampled = ((after >= 0) & (after % SAMPLED == 0)).expand(ROWS, -1)

    def run(self, shares: bool) -> float:
        """The loss."""
        on_gpu = self.model.device.type == "cuda"
        self.model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            scores = evaluate_tokens(
                self.model, self.ids, self.real, self.sampled, 1.0, entropy_grad=False, share_prompts=shares
            )
        loss = -scores.logprobs.sum() / self.sampled.sum()
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()
        return float(loss.detach())

    def gradients(self) -> list[Tensor]:
        """Those of the last run."""
        return [weight.grad.clone() for weight in self.model.parameters() if weight.grad is not None]


def measure(model: PreTrainedModel, case: Case, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    update = Update(model, case)
    found = {shares: (update.run(shares), update.gradients()) for shares in (False, True)}
    (loss, gradients), (other_loss, others) = found[False], found[True]
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds):
        for shares, taken in seconds.items():
            began = time.perf_counter()
            update.run(shares)
            taken.append(time.perf_counter() - began)
    whole, shared = (statistics.median(seconds[shares]) for shares in (False, True))
    size = {"prompts": ROWS // case.size, "longest": case.prompt, "rest": case.tokens - case.prompt - 1}
    predicted = relative_work(model.config, rows=ROWS, columns=case.tokens, **size)
    return {
        **case._asdict(),
        "whole_milliseconds": round(1e3 * whole, 1),
        "shared_milliseconds": round(1e3 * shared, 1),
        "ratio": round(shared / whole, 3),
        "predicted_ratio": round(predicted, 3),
        "is_shared": predicted <= AT_MOST,
        "loss_difference": abs(loss - other_loss),
        "gradient_difference": max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
        / largest,
    }


def table(results: Mapping[str, Any]) -> str:
    """The measured cases in Markdown."""
    shape = {"small": "a small Llama", "smollm2": "SmolLM2-135M's shape"}[results["shape"]]
    lines = [
        f"`{results['command']}`, {shape}, {results['layers']} layers, on {results['device']}:",
        "",
        "| rollouts | tokens | of them prompt | that begin alike | whole, ms | prompts once, ms | ratio | predicted "
        "| shared |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in results["cases"].items():
        lines.append(
            f"| {name} | {row['tokens']} | {row['prompt']} | {row['size']} | {row['whole_milliseconds']:.0f} | "
            f"{row['shared_milliseconds']:.0f} | {row['ratio']:.2f} | {row['predicted_ratio']:.2f} | "
            f"{'yes' if row['is_shared'] else 'no'} |"
        )
    return "\n".join(lines)


def main(config: SharedPromptsConfig) -> dict[str, Any]:
    """Measure, write the file and return what it holds."""
    torch.set_num_threads(config.threads)
    shape = dict(SMALL if config.shape == "small" else SMOLLM2)
    shape["num_hidden_layers"] = config.layers or shape["num_hidden_layers"]
    model = make_model(shape, config.device, torch.float32)
    with patch.object(shared_prompts, "AT_MOST", float("inf")):  # measured too where it does not pay
        cases = {name: measure(model, CASES[name], config.rounds) for name in track(config.cases, "measuring")}
    results = {
        "command": command_line(),
        "device": torch.cuda.get_device_name() if config.device == "cuda" else f"a CPU, {config.threads} thread",
        **machine(),
        "shape": config.shape,
        "layers": shape["num_hidden_layers"],
        "cases": cases,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, results)
    if config.output == RESULTS:
        page = put(PAGE.read_text(encoding="utf-8"), "shared", "benchmarks.shared_prompts", table(results))
        PAGE.write_text(page, encoding="utf-8")
    return results


if __name__ == "__main__":
    print(table(main(tyro.cli(SharedPromptsConfig, prog="python -m benchmarks.shared_prompts", description=__doc__))))
