"""The parts of `benchmarks.engine_speed` that train: an update, and rounds at the size of the paper's models."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents import grpo, losses, ppo
from agents.config import ComputeConfig, OptimizerConfig, SaveConfig
from agents.learner import Learner
from agents.rollout import Rollout, RolloutBatch, collate
from agents.runlog import RunLog, to_jsonable
from benchmarks.shapes import make_envs, make_model
from search_gym import Question, Span

if TYPE_CHECKING:
    from benchmarks.engine_speed import Bench

H100_BYTES = 83e9
"""What a process can have of an H100's memory of 80 GiB."""


def update(bench: Bench) -> dict[str, Any]:
    """An update in one, two and four micro-batches, and a plain one; none of them steps the optimiser."""
    config, on_gpu = bench.config, bench.device.type == "cuda"
    rows, length = config.update_rows, config.update_tokens
    rng = np.random.default_rng(0)
    rollouts = [fake_rollout(rng.integers(2, bench.shape["vocab_size"], length), bool(i % 2)) for i in range(rows)]
    found: dict[str, Any] = {"rows": rows, "tokens_a_row": length}
    compute = ComputeConfig(
        device=config.device,
        precision="bf16" if on_gpu else "fp32",
        compile="layers" if on_gpu and config.compile else "none",
    )
    learner = Learner(
        replace(
            grpo.PRESETS["default"],
            model="benchmarks.shapes:smollm2" if config.shape == "smollm2" else "benchmarks.shapes:small",
            compute=compute,
            rollouts_per_update=rows,
            group_size=2,
            minibatch_size=rows,
            kl_coef=0.0,
        )
    )
    learner.optimizer.step = lambda *args: None  # pyright: ignore[reportAttributeAccessIssue]
    batch = collate(rollouts, 0, bench.device, group_size=2)
    learner.begin(0)
    for name, parts in (("ours", 1), ("ours_in_two", 2), ("ours_in_four", 4)):
        micro = replace(compute, micro_batch_size=max(1, rows // parts))
        learner.config = replace(learner.config, compute=micro)
        found |= _timed_update(bench, name, lambda: policy_gradient(learner, batch), rows * length)
    learner.policy.to("cpu")
    batch = collate(rollouts, 0, bench.device, group_size=2)
    model = make_model(bench.shape, config.device, torch.float32)

    def plain() -> None:
        model.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=on_gpu):
            logits = model(input_ids=batch.token_ids, use_cache=False).logits
        logprobs = logits[:, :-1].float().log_softmax(-1).gather(-1, batch.token_ids[:, 1:, None])
        (-logprobs.mean()).backward()

    found |= _timed_update(bench, "plain", plain, rows * length)
    for name in ("ours", "ours_in_two", "ours_in_four"):
        found[f"{name}_ratio"] = round(found[f"{name}_tokens_per_second"] / found["plain_tokens_per_second"], 2)
        if on_gpu:
            found[f"{name}_memory_ratio"] = round(found[f"{name}_peak_gb"] / found["plain_peak_gb"], 3)
    return found


def _timed_update(bench: Bench, name: str, function: Callable[[], None], tokens: int) -> dict[str, Any]:
    for _ in range(2):
        function()
    bench.wait()
    bench.peak_gb()
    seconds = [bench.seconds(function) for _ in range(5)]
    return {
        f"{name}_milliseconds": round(1e3 * statistics.median(seconds), 1),
        f"{name}_tokens_per_second": round(tokens / statistics.median(seconds)),
        f"{name}_peak_gb": bench.peak_gb(),
    }


def fake_rollout(token_ids: Any, rewarded: bool) -> Rollout:
    """A rollout of one prompt token and an action of all others."""
    length = len(token_ids)
    spans = (Span("prompt", 0, 1), Span("action", 1, length))
    loss_mask = np.arange(length) > 0
    logprobs = np.full(length - 1, -np.log(length), dtype=np.float32)
    question = Question("q", "q", ("a",))
    return Rollout(question, 0, token_ids, spans, loss_mask, logprobs, float(rewarded), True, False, (), num_searches=0)


def policy_gradient(learner: Learner, batch: RolloutBatch) -> None:
    """One mini-batch of a clipped policy gradient with an entropy that is only logged, as in ``agents/grpo.py``."""
    advantages = losses.group_advantages(batch.rewards.sum(dim=1), batch.group_ids)[:, None].expand_as(batch.rewards)
    for part in learner.parts(batch, seed=0):
        new = learner.evaluate(part)
        weights = part.weights(batch.loss_mask)
        loss, stats = losses.ppo_policy_loss(
            new.logprobs, new.logprobs.detach(), part.cut(advantages), part.loss_mask, 0.2, 0.2, weights=weights
        )
        learner.backward(loss, stats | {"entropy": losses.weighted_sum(new.entropies, part.loss_mask, weights)})


class EnoughError(Exception):
    """A round is over."""


class OneRound(RunLog):
    """Ends the run after its second round, the first of which has warmed everything up."""

    def write(self, metrics: Any, alarms: Any = ()) -> None:
        self.rounds = [*getattr(self, "rounds", []), dict(metrics)]
        if len(self.rounds) == 2:
            raise EnoughError


def paper(bench: Bench) -> dict[str, Any]:
    """Seconds, tokens and memory of a round of each algorithm; each of four searches brings 500 tokens."""
    on_gpu = bench.device.type == "cuda"
    count = bench.config.paper_rollouts
    if on_gpu:  # what does not fit into the memory of an H100 shall fail
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, H100_BYTES / whole))
    env_options = {"max_turns": 4, "turn_tokens": 256, "observation_tokens": 500, "prompt_tokens": 200}
    compute = ComputeConfig(
        device=bench.config.device,
        precision="bf16" if on_gpu else "fp32",
        gradient_checkpointing=True,
        micro_batch_size=2,
        keep_cache=False,
    )
    found: dict[str, Any] = {}
    for name, module, options in (("PPO", ppo, {}), ("GRPO", grpo, {"group_size": 4})):
        config = replace(
            module.PRESETS["default"],
            model="benchmarks.shapes:qwen_3b" if on_gpu else "benchmarks.shapes:small",
            run_dir=Path("runs/engine-speed") / name,
            compute=compute,
            save=SaveConfig(save_every=1000, transcripts=0),
            optimizer=OptimizerConfig(learning_rate=1e-6, value_learning_rate=1e-5),
            rollouts_per_update=count,
            minibatch_size=max(4, count // 2),
            kl_coef=0.001 if on_gpu else 0.0,
            updates=10,
            **options,
        )
        log = OneRound(config.run_dir, to_jsonable(config), total=10, title=name, finished=0, trackers=[])
        bench.peak_gb()
        with suppress(EnoughError):
            module.train(config, make_envs=lambda _, codec, n: make_envs(codec, n, **env_options), log=log)
        row = log.rounds[-1]
        found[name] = {
            "rollouts": count,
            "rollout_seconds": round(row["time/rollout_seconds"], 2),
            "update_seconds": round(row["time/update_seconds"], 2),
            "sampled_tokens_per_round": log.rounds[1]["rollout/total_sampled_tokens"]
            - log.rounds[0]["rollout/total_sampled_tokens"],
            "peak_gb": bench.peak_gb(),
            "metrics": {key: value for key, value in row.items() if isinstance(value, (int, float))},
        }
        if on_gpu:
            torch.cuda.empty_cache()
    return found
