"""Self-RAG: retrieve on demand, try every document on its own, keep the segment that the policy itself likes best.

The policy learns from annotated episodes (``agents.baselines.reflection``) to write reflection tokens. At inference
each of the documents that a search finds opens a branch, each branch writes a segment and criticises it, and the best
goes on (``agents.baselines.segments``; Asai et al. 2023, arXiv 2310.11511, section 3.3, with a beam of one).

    python -m agents.baselines.self_rag --run-dir runs/self-rag
    python -m agents.baselines.self_rag --model runs/self-rag/checkpoint --demonstrations 0 --env.top-k 5
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from agents.baselines.reflection import demonstrate
from agents.baselines.segments import Weights, answer_questions
from agents.checkpoint import load_policy, save_policy
from agents.evaluate import Evaluation, estimate, to_plain
from agents.models import choose_device
from agents.policy import CausalLMWithValueHead
from agents.runlog import RunLog, command_line, to_jsonable, write_json
from agents.supervised import FitConfig, example_of, fit
from agents.tasks import EnvConfig, QuestionOrder, make_envs, question_kind
from agents.transcripts import score
from search_gym import TokenCodec
from search_gym.errors import OptionError, SearchGymError
from search_gym.task import Task


@dataclass(frozen=True)
class SelfRAGConfig:
    """Train a policy to reflect, then answer held-out questions with it."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(top_k=4))
    fit: FitConfig = field(default_factory=lambda: FitConfig(learning_rate=3e-3, batch_size=16, epochs=6))
    weights: Weights = field(default_factory=Weights)
    demonstrations: int = 4000
    """Training questions that are demonstrated with a critique, or all where there are fewer; 0: no training."""
    episodes_per_question: int = 4
    """Demonstrations of each of these questions, with other documents chosen."""
    eval_split: str = "test"
    """Split of the questions to answer."""
    eval_questions: int = 300
    """How many of them to answer."""
    run_dir: Path = Path("runs/self-rag")
    """Where config.json, metrics.jsonl, summary.json and the checkpoint go."""
    model: str = "tiny"
    """Policy to start from: "tiny", a Hugging Face directory or hub name, or a GGUF file."""
    seed: int = 1
    """Decides the questions and documents that are shown, and the order of examples."""
    threads: int = 1
    """Torch's CPU threads; for the tiny model one is as fast as two."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""


def train(config: SelfRAGConfig, *, log: RunLog | None = None) -> CausalLMWithValueHead:
    """Fine-tune a policy on annotated episodes, write its checkpoint, and return it.

    Raises:
        OptionError: ``demonstrations`` is below 1, or no episode ends right.
    """
    for name in ("demonstrations", "episodes_per_question"):
        if getattr(config, name) < 1:
            raise OptionError(f"expected {name} >= 1 to train on, got {getattr(config, name)}; do: raise it")
    torch.set_num_threads(config.threads)
    policy, codec = load_policy(config.model)
    policy.to(choose_device(config.device))
    task = make_envs(config.env, codec, 1).task
    count = min(config.demonstrations, len(task.questions))
    index = QuestionOrder(len(task.questions), config.seed).take(count)
    examples = [
        example_of(transcript)
        for episode in range(config.episodes_per_question)
        for transcript in demonstrate(task, index, (config.seed, episode))
    ]
    log = log or RunLog(config.run_dir, config, total=config.fit.num_steps(len(examples)), title="Self-RAG")
    with log:
        steps = 0

        def write(metrics: Mapping[str, float]) -> None:
            nonlocal steps
            steps += 1
            log.write({"update": steps, **metrics})

        fit(policy, examples, config.fit, pad_id=codec.pad_id, seed=config.seed, on_step=write)
    save_policy(config.run_dir / "checkpoint", policy, codec)
    return policy


def evaluate(
    model: PreTrainedModel, task: Task, question_index: Sequence[int], weights: Weights, *, seed: int = 0
) -> Evaluation:
    """Answer every question; ``sampled_tokens`` counts those of all branches. ``seed`` draws the bootstrap samples."""
    answered = answer_questions(model, task, question_index, weights)
    scores = [{**score(rollout), "sampled_tokens": float(tokens)} for rollout, tokens in answered]
    kinds = [question_kind(rollout.question) for rollout, _ in answered]
    return Evaluation(tuple(rollout for rollout, _ in answered), estimate(scores, kinds, seed))


def held_out(config: SelfRAGConfig, codec: TokenCodec) -> tuple[Task, range]:
    """The task of ``eval_split``, with as many questions of each kind, and the questions to ask there."""
    env = replace(config.env, split=config.eval_split, kinds=tuple(dict.fromkeys(config.env.kinds)))
    task = make_envs(env, codec, 1).task
    return task, range(min(config.eval_questions, len(task.questions)))


def main(config: SelfRAGConfig, console: Console | None = None) -> dict[str, Any]:
    """Train unless there is nothing to learn from, evaluate, and return what ``summary.json`` holds.

    Raises:
        OptionError: a number is out of its range.
    """
    console = console or Console()
    if config.eval_questions < 1:
        raise OptionError(f"expected eval_questions >= 1, got {config.eval_questions}; do: raise it")
    torch.set_num_threads(config.threads)
    if config.demonstrations:
        policy = train(config)
        codec = load_policy(config.model)[1]
    else:
        policy, codec = load_policy(config.model)
        policy.to(choose_device(config.device))
    task, index = held_out(config, codec)
    evaluation = evaluate(policy.model, task, index, config.weights, seed=config.seed)
    summary = {
        "command": command_line(),
        "config": to_jsonable(config),
        "num_questions": len(index),
        "metrics": to_plain(evaluation.estimates),
    }
    config.run_dir.mkdir(parents=True, exist_ok=True)
    write_json(config.run_dir / "summary.json", summary)
    for kind, found in evaluation.estimates.items():
        em = found["em"]
        console.print(
            f"{kind}: EM {em.mean:.3f} [{em.low:.3f}, {em.high:.3f}], {found['searches'].mean:.2f} searches, "
            f"{found['sampled_tokens'].mean:.0f} tokens in all branches",
            markup=False,
        )
    return summary


if __name__ == "__main__":
    disable_progress_bar()
    try:
        main(tyro.cli(SelfRAGConfig, prog="python -m agents.baselines.self_rag", description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
