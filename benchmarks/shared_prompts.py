"""What an update would gain if the prompt that a group's rollouts share were computed once.

``python -m benchmarks.shared_prompts`` times forward and backward of a language model over a group of rollouts, three
ways in one run: every rollout whole, as `agents.learner` does it; the prompt once, its keys and values repeated for the
rest of each rollout; and the rest alone, which bounds the gain. Losses and gradients of the first two are compared.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from agents.fused_scores import token_scores
from agents.runlog import command_line, write_json
from agents.tiny import CACHE
from benchmarks.shapes import SMALL, SMOLLM2, make_model


@dataclass(frozen=True)
class SharedPromptsConfig:
    """Options of the benchmark."""

    shape: Literal["small", "smollm2"] = "small"
    """Model: one that a CPU can bear, or SmolLM2-135M's shape."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it runs; on a GPU in bfloat16."""
    groups: int = 2
    """Groups in a micro-batch."""
    group_size: int = 4
    """Rollouts of a group."""
    prompt_tokens: int = 150
    """Tokens of the prompt."""
    tokens: int = 1000
    """Tokens of a rollout, the prompt included."""
    rounds: int = 7
    """Times that each way is measured; they take turns, and medians are kept."""
    output: Path = Path("benchmarks/results/shared_prompts.json")
    """The JSON file to write."""


def whole(model: PreTrainedModel, prompts: Tensor, rest: Tensor) -> Tensor:
    """The loss, every rollout computed by itself; ``prompts`` (G, P), ``rest`` (G, n, R)."""
    rows = torch.cat((prompts[:, None].expand(-1, rest.shape[1], -1), rest), dim=2).flatten(0, 1)
    body: Any = model.get_decoder()
    states = body(input_ids=rows, use_cache=False).last_hidden_state
    return _loss(model, states[:, prompts.shape[1] - 1 : -1], rest)


def shared(model: PreTrainedModel, prompts: Tensor, rest: Tensor) -> Tensor:
    """The same loss, every prompt computed once."""
    body: Any = model.get_decoder()
    cache = DynamicCache(config=model.config)
    options = {CACHE: cache, "use_cache": True}
    first = body(input_ids=prompts, **options).last_hidden_state[:, -1:]
    size = rest.shape[1]
    cache.batch_repeat_interleave(size)
    places = torch.arange(prompts.shape[1], prompts.shape[1] + rest.shape[2] - 1, device=rest.device)[None]
    states = body(input_ids=rest.flatten(0, 1)[:, :-1], position_ids=places, **options).last_hidden_state
    return _loss(model, torch.cat((first.repeat_interleave(size, dim=0), states), dim=1), rest)


def rest_alone(model: PreTrainedModel, prompts: Tensor, rest: Tensor) -> Tensor:
    """The loss of rollouts without prompts: another one, in the least time that sharing could take."""
    body: Any = model.get_decoder()
    return _loss(model, body(input_ids=rest.flatten(0, 1), use_cache=False).last_hidden_state, rest)


def _loss(model: PreTrainedModel, states: Tensor, rest: Tensor) -> Tensor:
    head: Any = model.get_output_embeddings()
    logprobs, _ = token_scores(states.flatten(0, 1), head.weight, rest.flatten(), 1.0, entropy_grad=False)
    return -logprobs.mean()


WAYS: dict[str, Callable[[PreTrainedModel, Tensor, Tensor], Tensor]] = {
    "whole": whole,
    "shared": shared,
    "rest_alone": rest_alone,
}


def main(config: SharedPromptsConfig) -> dict[str, Any]:
    """Measure, write the file and return what it holds."""
    shape = SMALL if config.shape == "small" else SMOLLM2
    on_gpu = config.device == "cuda"
    model = make_model(shape, config.device, torch.float32)
    generator = torch.Generator().manual_seed(0)
    size = (config.groups, config.group_size, config.tokens - config.prompt_tokens)
    prompts, rest = (
        torch.randint(2, shape["vocab_size"], drawn, generator=generator).to(config.device)
        for drawn in ((config.groups, config.prompt_tokens), size)
    )

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()

    def update(way: Callable[[PreTrainedModel, Tensor, Tensor], Tensor]) -> float:
        model.zero_grad()
        with precision():
            loss = way(model, prompts, rest)
        loss.backward()
        return float(loss.detach())

    found: dict[str, tuple[float, list[Tensor]]] = {}
    for name, way in WAYS.items():
        found[name] = update(way), [w.grad.clone() for w in model.parameters() if w.grad is not None]
    (loss, gradients), (other_loss, others) = found["whole"], found["shared"]
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(config.rounds):
        for name, way in WAYS.items():
            began = time.perf_counter()
            update(way)
            if on_gpu:
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    results = {
        "command": command_line(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "shape": config.shape,
        "rollouts": config.groups * config.group_size,
        "tokens_a_rollout": config.tokens,
        "prompt_tokens": config.prompt_tokens,
        "tokens_saved": round((1 - 1 / config.group_size) * config.prompt_tokens / config.tokens, 4),
        "milliseconds": {name: round(1e3 * median, 1) for name, median in medians.items()},
        "gain": round(1 - medians["shared"] / medians["whole"], 4),
        "gain_at_most": round(1 - medians["rest_alone"] / medians["whole"], 4),
        "loss_difference": abs(loss - other_loss),
        "gradient_difference": max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
        / largest,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, results)
    return results


if __name__ == "__main__":
    print(main(tyro.cli(SharedPromptsConfig, prog="python -m benchmarks.shared_prompts", description=__doc__)))
