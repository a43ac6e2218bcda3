"""The rows of ``benchmarks.baselines``: how each method is trained and evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedModel

from agents import algorithms
from agents.baselines import rejection_sampling, self_rag, sft
from agents.baselines.demonstrations import FORMS, FormName
from agents.baselines.no_search import no_search_envs
from agents.baselines.static_rag import static_rag_envs, static_rag_max_envs
from agents.checkpoint import load_policy
from agents.demo import held_out
from agents.evaluate import evaluate
from agents.rollout import Rollout
from agents.supervised import FitConfig
from agents.tasks import EnvConfig, MakeEnvs, make_envs, question_kind
from agents.transcripts import score
from search_gym.rewards import em_score
from search_gym.scripted import OraclePolicy, ScriptedPolicy, SingleSearchPolicy, play

METRICS = ("em", "searches", "sampled_tokens")
IRCOT_DOCUMENTS = 3
SELF_RAG_DOCUMENTS = 4


@dataclass(frozen=True)
class Size:
    """What decides a result besides the method and the seed."""

    hops: Literal[2, 3] = 2
    """Most hops of a question, in training and in the table; 3 takes the algorithms' preset "long"."""
    questions_per_kind: int = 300
    """Held-out questions of each number of hops."""
    demonstrations: int = 3500
    """Training questions that are demonstrated to the counterpart of a prompting method."""

    @property
    def env(self) -> EnvConfig:
        """The task that all methods share."""
        kinds = ("1-hop", "2-hop", "2-hop", "2-hop")
        return EnvConfig(kinds=(*kinds, "3-hop", "3-hop") if self.hops == 3 else kinds)


class Outcome(NamedTuple):
    """What a method did on each question, the metrics of `METRICS` for each, and the seconds that training took."""

    kinds: list[str]
    scores: list[dict[str, float]]
    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0


Run = Callable[[Size, int, Path], Outcome]


@dataclass(frozen=True)
class Method:
    """A row: what it is called, what it has learned from, and how it is trained and evaluated."""

    label: str
    trained_on: str
    run: Run


def base(size: Size, seed: int, run_dir: Path) -> Outcome:
    """The base model, not trained further."""
    return _evaluated(load_policy("tiny")[0].model, make_envs, size.env, size, seed)


@dataclass(frozen=True)
class Supervised:
    """Fine-tuning on demonstrations of a form."""

    form: FormName
    demonstrations: int | None = None
    epochs: int = 4
    top_k: int = 1

    def __call__(self, size: Size, seed: int, run_dir: Path) -> Outcome:
        count = size.demonstrations if self.demonstrations is None else self.demonstrations
        env = replace(size.env, top_k=self.top_k)
        options = sft.SFTConfig(
            env=env,
            fit=FitConfig(epochs=self.epochs),
            form=self.form,
            demonstrations=count,
            run_dir=run_dir,
            seed=seed,
        )
        policy, spent = timed(lambda: sft.train(options))
        return _evaluated(policy.model, FORMS[self.form].make_envs, env, size, seed, spent)


@dataclass(frozen=True)
class Reinforced:
    """An algorithm of ``agents`` in the environments of a baseline."""

    algorithm: str
    make_envs: MakeEnvs = make_envs

    def __call__(self, size: Size, seed: int, run_dir: Path) -> Outcome:
        module = algorithms.load(self.algorithm)
        preset = module.PRESETS["default" if size.hops == 2 else "long"]
        options = replace(preset, env=size.env, run_dir=run_dir, seed=seed)
        policy, spent = timed(lambda: module.train(options, make_envs=self.make_envs))
        return _evaluated(policy.model, self.make_envs, size.env, size, seed, spent)


@dataclass(frozen=True)
class Rejected:
    """Rejection sampling, so many rounds of it."""

    rounds: int
    questions_per_round: int
    samples_per_question: int

    def __call__(self, size: Size, seed: int, run_dir: Path) -> Outcome:
        options = rejection_sampling.RejectionSamplingConfig(
            env=size.env,
            run_dir=run_dir,
            seed=seed,
            rounds=self.rounds,
            questions_per_round=self.questions_per_round,
            samples_per_question=self.samples_per_question,
        )
        policy, spent = timed(lambda: rejection_sampling.train(options))
        return _evaluated(policy.model, make_envs, size.env, size, seed, spent)


def reflecting(size: Size, seed: int, run_dir: Path) -> Outcome:
    """Self-RAG."""
    env = replace(size.env, top_k=SELF_RAG_DOCUMENTS)
    options = self_rag.SelfRAGConfig(
        env=env,
        demonstrations=size.demonstrations,
        eval_questions=size.questions_per_kind * size.hops,
        run_dir=run_dir,
        seed=seed,
    )
    policy, spent = timed(lambda: self_rag.train(options))
    task, index = self_rag.held_out(options, load_policy("tiny")[1])
    index = untouched(index)
    answered = self_rag.answer_questions(policy.model, task, index, options.weights)
    kinds, scores = _scored([rollout for rollout, _ in answered])
    for row, (_, tokens) in zip(scores, answered, strict=True):
        row["sampled_tokens"] = float(tokens)
    return Outcome(kinds, scores, *spent)


@dataclass(frozen=True)
class Scripted:
    """A program that reasons without a model."""

    policy: ScriptedPolicy

    def __call__(self, size: Size, seed: int, run_dir: Path) -> Outcome:
        env = size.env
        envs, index = held_out(env, load_policy("tiny")[1], make_envs, size.questions_per_kind)
        questions = [envs.task.questions[i] for i in untouched(index)]
        answers = play(self.policy, questions, envs.task.retriever, env.top_k, env.max_turns)
        scores = [{"em": em_score(a, q.answers)} for a, q in zip(answers, questions, strict=True)]
        return Outcome([question_kind(question) for question in questions], scores)


@dataclass(frozen=True)
class StableBaselines:
    """An algorithm of Stable-Baselines3 or sb3-contrib: its policy chooses among the names and relations in sight."""

    algorithm: Literal["PPO", "MaskablePPO"]

    def __call__(self, size: Size, seed: int, run_dir: Path) -> Outcome:
        from benchmarks.sb3 import Settings, train_and_evaluate

        return train_and_evaluate(self.algorithm, size, seed, run_dir, Settings())


METHODS: dict[str, Method] = {
    "base": Method("base model", "", base),
    "direct": Method("direct inference", "SFT on {n} demonstrations of the form", Supervised("direct")),
    "cot": Method("chain of thought", "SFT on {n} demonstrations of the form", Supervised("cot")),
    "static-rag": Method("static RAG, k = 1", "SFT on {n} demonstrations of the form", Supervised("static-rag")),
    "static-rag-max": Method(
        "static RAG, k = 4", "SFT on {n} demonstrations of the form", Supervised("static-rag-max")
    ),
    "ircot": Method(
        f"IRCoT, k = {IRCOT_DOCUMENTS}",
        "SFT on {n} demonstrations of the form",
        Supervised("ircot", top_k=IRCOT_DOCUMENTS),
    ),
    "react": Method("ReAct", "SFT on {n} demonstrations of the form", Supervised("react")),
    "self-rag": Method(
        f"Self-RAG, k = {SELF_RAG_DOCUMENTS}", "SFT on {n} questions, 4 annotated episodes each", reflecting
    ),
    "sft": Method("SFT", "SFT on {n} questions with their answers", Supervised("direct", epochs=12)),
    "sft-search": Method(
        "SFT, one search", "SFT on {n} questions, each searched for, with their answers", Supervised("search-once")
    ),
    "r1": Method("R1 (PPO, no search)", "reward", Reinforced("ppo", no_search_envs)),
    "rejection-1": Method(
        "rejection sampling", "SFT on the right ones of 5 episodes for each of 1,024 questions", Rejected(1, 1024, 5)
    ),
    "rejection-10": Method(
        "rejection sampling, 10 rounds", "the same, 4 for each of 512 questions, ten times", Rejected(10, 512, 4)
    ),
    "static-rag-ppo": Method("static RAG, k = 1, PPO", "reward", Reinforced("ppo", static_rag_envs)),
    "static-rag-max-ppo": Method("static RAG, k = 4, PPO", "reward", Reinforced("ppo", static_rag_max_envs)),
    "ppo": Method("Search-R1, PPO", "reward", Reinforced("ppo")),
    "grpo": Method("Search-R1, GRPO", "reward", Reinforced("grpo")),
    "sb3-ppo": Method("Stable-Baselines3's PPO, macro actions", "reward", StableBaselines("PPO")),
    "sb3-maskable-ppo": Method("sb3-contrib's MaskablePPO, macro actions", "reward", StableBaselines("MaskablePPO")),
    "single-search": Method("one search by a program", "", Scripted(SingleSearchPolicy())),
    "oracle": Method("a search a hop by a program", "", Scripted(OraclePolicy())),
}


def timed(train: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What ``train`` returns, and the seconds and CPU seconds that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = train()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def _evaluated(
    model: PreTrainedModel,
    make: MakeEnvs,
    env: EnvConfig,
    size: Size,
    seed: int,
    spent: tuple[float, float] = (0.0, 0.0),
) -> Outcome:
    envs, index = held_out(env, load_policy("tiny")[1], make, size.questions_per_kind)
    kinds, scores = _scored(evaluate(model, envs, untouched(index), seed=seed).rollouts)
    return Outcome(kinds, scores, *spent)


def untouched(index: range) -> range:
    """As many held-out questions after those of ``index``, with which the settings of some methods were chosen."""
    return range(index.stop, 2 * index.stop)


def _scored(rollouts: Sequence[Rollout]) -> tuple[list[str], list[dict[str, float]]]:
    scores = [{metric: score(rollout)[metric] for metric in METRICS} for rollout in rollouts]
    return [question_kind(rollout.question) for rollout in rollouts], scores
