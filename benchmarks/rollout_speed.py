"""The parts of `benchmarks.engine_speed` that sample: decoding, whole episodes, slow retrievers."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agents.fast_generation import FastGenerator
from agents.generation import CachedGenerator
from agents.rollout import Rollout, collect
from benchmarks.shapes import CLOSES, SMALL, UniformCodec, make_envs, make_model

if TYPE_CHECKING:
    from benchmarks.engine_speed import Bench


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
