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

Models have random weights; `benchmarks.shapes` says how their tokens are read. Writes one JSON file.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from agents import grpo, losses, ppo
from agents.config import ComputeConfig, OptimizerConfig, SaveConfig
from agents.fast_generation import FastGenerator
from agents.generation import CachedGenerator
from agents.learner import Learner
from agents.rollout import Rollout, RolloutBatch, collate, collect
from agents.runlog import RunLog, command_line, to_jsonable, write_json
from benchmarks.shapes import CLOSES, SMALL, SMOLLM2, UniformCodec, make_envs, make_model
from search_gym import Question, Span

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
    output: Path = Path("benchmarks/results/engine_speed.json")
    """The JSON file to write."""


H100_BYTES = 79e9
"""What a process can have of an H100's 80 GB."""


class Bench:
    """The models and the clock of a run."""

    def __init__(self, config: EngineSpeedConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.shape = SMOLLM2 if config.shape == "smollm2" else SMALL
        self.codec = UniformCodec(self.shape["vocab_size"])
        self._model: PreTrainedModel | None = None

    @property
    def model(self) -> PreTrainedModel:
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


def check(bench: Bench) -> dict[str, Any]:
    """Tokens that differ between the two engines, and the largest difference of log-probabilities."""
    model = make_model(SMALL, bench.config.device, torch.float32)
    envs = make_envs(UniformCodec(SMALL["vocab_size"]), 16, retrieval_seconds=0.0)
    engines = (CachedGenerator, FastGenerator)
    simple, fast = (collect(envs, engine(model, envs.task.codec), range(48), seed=1) for engine in engines)
    different = sum(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(simple, fast, strict=True))
    same = [(a, b) for a, b in zip(simple, fast, strict=True) if np.array_equal(a.token_ids, b.token_ids)]
    return {
        "episodes": len(simple),
        "episodes_that_differ": different,
        "largest_logprob_difference": max(float(np.abs(a.logprobs - b.logprobs).max()) for a, b in same),
        "sampled_tokens": sum(int(r.loss_mask.sum()) for r in simple),
    }


class Endless:
    """A codec in which nothing ends a turn."""

    pad_id = 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.eos_id = vocab_size, vocab_size

    def encode(self, text: str, *, allow_special: bool = False) -> Any:
        raise AssertionError("nothing is written here")

    def decode(self, ids: Any) -> str:
        return "w" * len(ids)


def decode(bench: Bench) -> dict[str, Any]:
    """Tokens per second of the fast engine and of ``generate`` with its default cache."""
    config = bench.config
    slots, prompt = config.slots, config.context - config.tokens // 2
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, bench.shape["vocab_size"], prompt) for _ in range(slots)]
    generator = FastGenerator(bench.model, Endless(bench.shape["vocab_size"]), steps=16)
    rates = []
    for _ in range(4):
        generator.start(slots, seed=0)
        generator.extend(range(slots), prompts)
        generator.sample(range(slots), [1] * slots)  # feeds the prompt, and the first time captures the step
        rates.append(
            slots * config.tokens / bench.seconds(lambda: generator.sample(range(slots), [config.tokens] * slots))
        )
    found = {
        "slots": slots,
        "mean_context": config.context,
        "tokens_per_second": round(statistics.median(rates[1:])),
        "runs": [round(rate) for rate in rates],
        "peak_gb": bench.peak_gb(),
    }
    generator.release()
    ids = torch.tensor(np.stack(prompts), device=bench.device)
    few = max(2, config.tokens // 4)

    def generate() -> Any:
        return bench.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=few,
            min_new_tokens=few,
        )

    def prefill() -> Any:
        with torch.no_grad():
            return bench.model(input_ids=ids, logits_to_keep=1)

    generate()
    seconds = bench.seconds(generate) - bench.seconds(prefill)
    found["generate_tokens_per_second"] = round(slots * few / seconds)
    found["ratio"] = round(found["tokens_per_second"] / found["generate_tokens_per_second"], 2)
    return found


def rollouts(bench: Bench) -> dict[str, Any]:
    """Episodes per second of the fast engine and of the reference's method."""
    slots = bench.config.slots
    envs = make_envs(bench.codec, slots)
    generator = FastGenerator(bench.model, bench.codec)
    on_gpu = bench.device.type == "cuda"
    ours: list[Rollout] = []

    def play() -> None:
        ours[:] = collect(envs, generator, range(2 * slots), seed=1, overlap=on_gpu)

    play()
    seconds = min(bench.seconds(play) for _ in range(2))
    generator.release()
    sampled = sum(int(r.loss_mask.sum()) for r in ours)
    theirs: list[int] = []
    reference_seconds = bench.seconds(lambda: theirs.append(reference_rollouts(bench, slots)))
    found = {
        "slots": slots,
        "episodes": len(ours),
        "mean_sampled_tokens": round(sampled / len(ours), 1),
        "mean_tokens": round(statistics.fmean(len(r.token_ids) for r in ours), 1),
        "mean_turns": round(statistics.fmean(len(r.turns) for r in ours), 2),
        "seconds": round(seconds, 2),
        "episodes_per_second": round(len(ours) / seconds, 1),
        "sampled_tokens_per_second": round(sampled / seconds),
        "reference_episodes": slots,
        "reference_mean_sampled_tokens": round(theirs[0] / slots, 1),
        "reference_seconds": round(reference_seconds, 2),
        "reference_episodes_per_second": round(slots / reference_seconds, 1),
        "peak_gb": bench.peak_gb(),
    }
    found["ratio"] = round(found["episodes_per_second"] / found["reference_episodes_per_second"], 2)
    return found


def reference_rollouts(bench: Bench, num_episodes: int) -> int:
    """Search-R1's loop, on token ids: each turn prefills every active context again and generates to the limit.

    Returns the number of sampled tokens that were kept.
    """
    envs = make_envs(bench.codec, num_episodes)
    observations, _ = envs.reset(options={"question_index": 0})
    held = [observation.copy() for observation in observations]
    active = list(range(num_episodes))
    kept = 0
    while active:
        width = max(held[slot].size for slot in active)
        ids = np.zeros((len(active), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, slot in enumerate(active):
            ids[row, width - held[slot].size :] = held[slot]
            mask[row, width - held[slot].size :] = 1
        limit = max(envs.episode(slot).turn_tokens_left for slot in active)
        output = bench.model.generate(
            input_ids=torch.from_numpy(ids).to(bench.device),
            attention_mask=torch.from_numpy(mask).to(bench.device),
            do_sample=True,
            top_k=0,
            max_new_tokens=limit,
            min_new_tokens=limit,
        )
        new = output[:, width:].cpu().numpy()
        turns = []
        for row in new:
            closing = np.flatnonzero(row % CLOSES == 1)
            turns.append(row[: closing[0] + 1] if closing.size else row)
        results = envs.recv(envs.send(active, turns))
        going_on = []
        for slot, turn, (observation, _, terminated, truncated, _) in zip(active, turns, results, strict=True):
            kept += turn.size
            if not (terminated or truncated):
                held[slot] = np.concatenate((held[slot], turn, observation))
                going_on.append(slot)
        active = going_on
    return kept


def retriever(bench: Bench) -> dict[str, Any]:
    """Seconds of the same episodes with a retriever that answers at once, and with one that takes 50 ms."""
    slots = bench.config.slots
    generator = FastGenerator(bench.model, bench.codec)
    found: dict[str, Any] = {"slots": slots, "episodes": 3 * slots}
    for name, delay, overlap in (("at_once", 0.0, True), ("50_ms", 0.05, True), ("50_ms_without_overlap", 0.05, False)):
        envs = make_envs(bench.codec, slots, retrieval_seconds=delay)
        collect(envs, generator, range(slots), seed=0, overlap=overlap)
        seconds = [
            bench.seconds(lambda: collect(envs, generator, range(3 * slots), seed=1, overlap=overlap))  # noqa: B023
            for _ in range(2)
        ]
        found[f"seconds_{name}"] = round(min(seconds), 3)
        envs.close()
    for name in ("50_ms", "50_ms_without_overlap"):
        found[f"share_{name}"] = round(1 - found["seconds_at_once"] / found[f"seconds_{name}"], 4)
    return found


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

    rows: list[dict[str, Any]]

    def write(self, row: Any, alarms: Any = ()) -> None:
        self.rows = [*getattr(self, "rows", []), dict(row)]
        if len(self.rows) == 2:
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
        micro_batch_size=4,
        keep_cache=False,
    )
    found: dict[str, Any] = {}
    for name, module, options in (("PPO", ppo, {}), ("GRPO", grpo, {"group_size": 4})):
        config = replace(
            module.PRESETS["default"],
            model="benchmarks.shapes:qwen_3b" if on_gpu else "benchmarks.shapes:small",
            run_dir=Path("runs/engine-speed") / name,
            compute=compute,
            save=SaveConfig(save_every=1000),
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
        row = log.rows[-1]
        found[name] = {
            "rollouts": count,
            "rollout_seconds": round(row["time/rollout_seconds"], 2),
            "update_seconds": round(row["time/update_seconds"], 2),
            "sampled_tokens_per_round": log.rows[1]["rollout/total_sampled_tokens"]
            - log.rows[0]["rollout/total_sampled_tokens"],
            "peak_gb": bench.peak_gb(),
            "metrics": {key: value for key, value in row.items() if isinstance(value, (int, float))},
        }
        if on_gpu:
            torch.cuda.empty_cache()
    return found


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
    results: dict[str, Any] = {
        "command": command_line(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
    }
    for part in config.parts:
        began = time.perf_counter()
        try:
            results[part] = PARTS[part](bench)
        except Exception:  # what the other parts measure is still worth having
            traceback.print_exc()
            results[part] = {"failed": traceback.format_exc(limit=1).splitlines()[-1]}
        results[part]["benchmark_seconds"] = round(time.perf_counter() - began, 1)
        print(part, results[part], flush=True)
        config.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.output, results)
    return results


if __name__ == "__main__":
    disable_progress_bar()
    main(tyro.cli(EngineSpeedConfig, prog="python -m benchmarks.engine_speed", description=__doc__))
