"""A policy learns to search, from start to finish: what ``make demo`` runs.

    python -m agents.demo --run-dir runs/demo

takes the options of ``agents.ppo``. It evaluates the base model on worlds that training never sees, trains it,
evaluates it again, and compares it with scripted policies and with agents that cannot search, which a second process
trains in the same way meanwhile. Everything goes to ``--run-dir``; start with ``report.html``.

    python -m agents.demo --run-dir runs/my-gae --use my_gae.py:gae

trains with a function of yours, and compares it with a run that differs in nothing but that (docs/classroom.md).
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from agents import grpo, ppo
from agents.baselines.no_search import no_search_envs
from agents.baselines.static_rag import static_rag_envs, static_rag_max_envs
from agents.checkpoint import load_policy
from agents.config import TrainConfig, named_preset
from agents.evaluate import Estimate, Evaluation, estimate, evaluate, question_progress, to_plain
from agents.pieces import Pieces
from agents.policy import CausalLMPolicy, CausalLMWithValueHead
from agents.ppo import PRESETS, PPOConfig
from agents.report import LABELS, write_page
from agents.rollout import Rollout
from agents.runlog import command_line, write_config, write_json, write_text
from agents.tasks import EnvConfig, MakeEnvs, make_envs, question_kind
from agents.transcripts import describe, transcript_of
from search_gym import SearchVectorEnv, TokenCodec
from search_gym.errors import OptionError, SearchGymError
from search_gym.render import to_ansi
from search_gym.rewards import em_score
from search_gym.scripted import OraclePolicy, SingleSearchPolicy, play

TRAINED: Mapping[str, MakeEnvs] = {
    "no-search": no_search_envs,
    "static-rag": static_rag_envs,
    "static-rag-max": static_rag_max_envs,
}
QUESTIONS_PER_KIND = 300
NUM_ENVS = 100
NUM_TRANSCRIPTS = 8

BUILT_IN = "built-in"
"""The run that is trained beside one with functions of the user's, without them."""

Estimates = Mapping[str, Mapping[str, Estimate]]


def main(
    config: PPOConfig, *, questions_per_kind: int = QUESTIONS_PER_KIND, console: Console | None = None
) -> dict[str, Any]:
    """Run the demo, write its files, and return what ``summary.json`` holds.

    Raises:
        OptionError: questions other than TinyWiki's. SearchGymError: a baseline could not be trained.
    """
    if config.env.questions != "tinywiki":
        raise OptionError(f"expected the questions 'tinywiki', got {config.env.questions!r}; do: use agents.ppo")
    console = console or Console()
    torch.set_num_threads(config.compute.threads)
    write_config(config.run_dir, config)
    for name in ("summary.json", "transcripts.jsonl", "curves.png", "curves.svg", "report.html"):
        (config.run_dir / name).unlink(missing_ok=True)  # of an earlier run, lest an interrupted one seems complete
    pieces = Pieces(config.use)
    others = compared_with(config)
    for slot, path in pieces.paths.items():
        console.print(f"Using {slot} of {path}", highlight=False, soft_wrap=True)
    base, codec = load_policy(config.model)
    envs, index = held_out(config.env, codec, make_envs, questions_per_kind)
    pieces.install(envs, config.env.corpus, with_reward=False)

    with in_background(train_baselines, config, questions_per_kind, log=config.run_dir / "baselines.log"):
        console.print(f"Before training: {len(index)} questions about worlds that training never sees")
        with question_progress(console, len(index)) as report:
            before = evaluate(base.model, envs, index, seed=config.seed, on_progress=report)
        started = time.perf_counter()
        policy = train_as(config)
        train_seconds = time.perf_counter() - started
        console.print("After training: the same questions")
        with question_progress(console, len(index)) as report:
            after = evaluate(policy.model, envs, index, seed=config.seed, on_progress=report)
        console.print("Waiting for the second process, unless it is ready")

    rows: dict[str, Estimates] = {"before": before.estimates}
    rows |= {name: read_estimates(baseline_dir(config, name)) for name in others}
    rows |= {"after": after.estimates, **scripted_estimates(envs, index, config)}
    summary = {
        "command": command_line(),
        "seed": config.seed,
        "used": list(config.use),
        "num_questions": len(index),
        "train_seconds": round(train_seconds, 1),
        **nest({name: em_by_kind(estimates, lambda em: em.mean) for name, estimates in rows.items()}),
        "intervals": nest({name: em_by_kind(row, lambda em: [em.low, em.high]) for name, row in rows.items()}),
        "metrics": {name: to_plain(estimates) for name, estimates in rows.items()},
    }
    write_json(config.run_dir / "summary.json", summary)
    write_lines(
        config.run_dir / "transcripts.jsonl",
        [
            *describe(before.rollouts[:NUM_TRANSCRIPTS], codec, label="before"),
            *(row for name in others for row in read_lines(baseline_dir(config, name) / "transcripts.jsonl")),
            *describe(after.rollouts[:NUM_TRANSCRIPTS], codec, label="after", policy=with_values(policy)),
        ],
    )
    page = write_page(config.run_dir)

    for name, rollout in zip(("before", "after"), telling_pair(before, after), strict=True):
        console.rule(f"{LABELS[name]}; right answer: {' or '.join(rollout.question.answers)}")
        console.print(Text.from_ansi(to_ansi(transcript_of(rollout), codec)))
    console.print(comparison(rows))
    console.print(f"Training took {train_seconds:.0f} s. Curves, table and transcripts: {page}")
    return summary


def held_out(
    config: EnvConfig, codec: TokenCodec, make: MakeEnvs, questions_per_kind: int
) -> tuple[SearchVectorEnv, range]:
    """The task in worlds of the test split, and the questions to ask there, as many of each kind."""
    task = replace(config, split="test", kinds=tuple(dict.fromkeys(config.kinds)))
    count = questions_per_kind * len(task.kinds)
    envs = make(task, codec, min(NUM_ENVS, count))
    return envs, range(min(count, len(envs.task.questions)))


def train_baselines(config: PPOConfig, questions_per_kind: int) -> None:
    """Train every agent of `compared_with` with the options of the first, and evaluate it on the same questions."""
    codec = load_policy(config.model)[1]
    for name, make in compared_with(config).items():
        run_dir = baseline_dir(config, name)
        policy = train_as(config, replace(config, run_dir=run_dir, use=()), make)
        envs, index = held_out(config.env, codec, make, questions_per_kind)
        evaluation = evaluate(policy.model, envs, index, seed=config.seed)
        shown = describe(evaluation.rollouts[:NUM_TRANSCRIPTS], codec, label=name, policy=with_values(policy))
        write_lines(run_dir / "transcripts.jsonl", shown)
        write_json(run_dir / "summary.json", {"metrics": to_plain(evaluation.estimates)})


def compared_with(config: PPOConfig) -> Mapping[str, MakeEnvs]:
    """What else is trained: agents that cannot search or, beside functions of the user's, the same without them."""
    return {BUILT_IN: make_envs} if config.use else TRAINED


def train_as(config: PPOConfig, changed: PPOConfig | None = None, make: MakeEnvs = make_envs) -> CausalLMPolicy:
    """Train with the options ``changed``, by default ``config``, and the algorithm that has what ``config`` uses: PPO,
    or GRPO with the options that both have."""
    changed = changed or config
    if "group_advantages" not in Pieces(config.use):
        return ppo.train(changed, make_envs=make)
    default = grpo.GRPOConfig()
    shared = {field.name: getattr(changed, field.name) for field in fields(TrainConfig)}
    shared |= {"group_size": default.group_size, "kl_coef": default.kl_coef}
    return grpo.train(grpo.GRPOConfig(**shared), make_envs=make)


def with_values(policy: CausalLMPolicy) -> CausalLMWithValueHead | None:
    """``policy``, if it has a value head, without which a transcript has no values."""
    return policy if isinstance(policy, CausalLMWithValueHead) else None


def baseline_dir(config: PPOConfig, name: str) -> Path:
    """The run folder of a trained baseline."""
    return config.run_dir / "baselines" / name


def scripted_estimates(envs: SearchVectorEnv, index: range, config: TrainConfig) -> dict[str, Estimates]:
    """Exact match of two policies that reason by program: with one search, and with one for each hop."""
    questions = [envs.task.questions[i] for i in index]
    kinds = [question_kind(question) for question in questions]
    policies = {"single-search": SingleSearchPolicy(), "oracle": OraclePolicy(config.env.max_turns)}
    found = {}
    for name, policy in policies.items():
        answers = play(policy, questions, envs.task.retriever, config.env.top_k, config.env.max_turns)
        scores = [{"em": em_score(a, q.answers)} for a, q in zip(answers, questions, strict=True)]
        found[name] = estimate(scores, kinds, config.seed, metrics=("em",))
    return found


@contextmanager
def in_background(function: Callable[..., None], *args: Any, log: Path) -> Iterator[None]:
    """Run ``function(*args)`` in a second process while the block runs, and wait for it at the end.

    What it prints goes to ``log``. An error in the block ends it.

    Raises:
        SearchGymError: the function raised.
    """
    process = multiprocessing.get_context("spawn").Process(target=_logged, args=(log, function, *args), daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()
    if process.exitcode:
        raise SearchGymError(
            f"expected the second process to succeed, got exit status {process.exitcode}; do: see {log}"
        )


def _logged(log: Path, function: Callable[..., None], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the first one ends this one.
    disable_progress_bar()
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file):
        function(*args)


def em_by_kind(estimates: Estimates, value: Callable[[Estimate], Any]) -> dict[str, Any]:
    """``value`` of the exact match of each kind of question."""
    return {kind: value(metrics["em"]) for kind, metrics in estimates.items() if kind != "all"}


def nest(rows: Mapping[str, Any]) -> dict[str, Any]:
    """``rows`` by policy, in the layout of a summary."""
    return {
        "em_before": rows["before"],
        "em_after": rows["after"],
        "baselines": {name: row for name, row in rows.items() if name not in ("before", "after")},
    }


def telling_pair(before: Evaluation, after: Evaluation) -> tuple[Rollout, Rollout]:
    """One question's episodes before and after training: if there is one, a question of most hops that was learned."""

    def rank(pair: tuple[Rollout, Rollout]) -> tuple[bool, int]:
        old, new = pair
        return new.reward > old.reward, new.question.metadata["hops"]

    return max(zip(before.rollouts, after.rollouts, strict=True), key=rank)


def comparison(rows: Mapping[str, Estimates]) -> Table:
    """Exact match of every policy on every kind of question, and how often it searched."""
    kinds = [kind for kind in rows["after"] if kind != "all"]
    table = Table(title="exact match on held-out worlds", caption="mean and 95 % interval over questions")
    table.add_column("policy")
    for kind in (*kinds, "searches"):
        table.add_column(kind, justify="right")
    for name, estimates in rows.items():
        cells = [f"{e.mean:.2f} \\[{e.low:.2f}, {e.high:.2f}]" for e in (estimates[kind]["em"] for kind in kinds)]
        searches = estimates["all"].get("searches")
        table.add_row(LABELS[name], *cells, "" if searches is None else f"{searches.mean:.1f}")
    return table


def read_estimates(run_dir: Path) -> Estimates:
    """The estimates in the ``summary.json`` of ``run_dir``."""
    metrics = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["metrics"]
    return {kind: {name: Estimate(**e) for name, e in by_metric.items()} for kind, by_metric in metrics.items()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    disable_progress_bar()
    default = replace(named_preset(PRESETS), run_dir=Path("runs/demo"))
    options = tyro.cli(PPOConfig, default=default, prog="python -m agents.demo", description=__doc__)
    try:
        main(options)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\ninterrupted; {options.run_dir} holds what there is so far", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
