"""Greedy evaluation on every question, each exactly once, with bootstrap intervals.

    python -m agents.evaluate --model runs/demo/checkpoint
    python -m agents.evaluate --model MODEL --questions jsonl:QUESTIONS --corpus CORPUS --split all --limit 50

``--run-dir`` receives ``config.json``, ``transcripts.jsonl`` (a line per episode, appended as episodes finish) and
``summary.json``. A run that was interrupted goes on with ``--resume`` and ends with the same files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from agents.checkpoint import VALUE_HEAD_FILE, load_policy
from agents.generation import make_generator
from agents.models import choose_device
from agents.rollout import Rollout, collect_waves
from agents.runlog import command_line, to_jsonable, write_config, write_json, write_text
from agents.tasks import REAL_TEXT, EnvConfig, make_envs, question_kind, reuse
from agents.transcripts import METRICS, describe, score
from search_gym import SearchVectorEnv
from search_gym.errors import OptionError, SearchGymError
from search_gym.estimates import NUM_RESAMPLES, Estimate, bootstrap_interval, estimate, to_plain

__all__ = [
    "NUM_RESAMPLES",
    "Estimate",
    "EvaluateConfig",
    "Evaluation",
    "bootstrap_interval",
    "estimate",
    "evaluate",
    "greedy_waves",
    "main",
    "question_progress",
    "table_of",
    "to_plain",
]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Greedy rollouts, one for each question and in their order, and what they come to.

    ``estimates["all"]``, and one more entry for each kind of question, hold an `Estimate` for each metric of `score`.
    """

    rollouts: tuple[Rollout, ...]
    estimates: Mapping[str, Mapping[str, Estimate]]


def evaluate(
    model: PreTrainedModel,
    envs: SearchVectorEnv,
    question_index: Sequence[int],
    *,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Answer every question greedily. ``seed`` only draws the bootstrap samples.

    Raises:
        ValueError: fewer questions than environments.
    """
    waves = greedy_waves(model, envs, question_index, on_progress=on_progress)
    rollouts = tuple(rollout for wave in waves for rollout in wave)
    kinds = [question_kind(rollout.question) for rollout in rollouts]
    return Evaluation(rollouts, estimate([score(rollout) for rollout in rollouts], kinds, seed))


def greedy_waves(
    model: PreTrainedModel,
    envs: SearchVectorEnv,
    question_index: Sequence[int],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[list[Rollout]]:
    """The greedy rollouts of all questions in order, ``envs.num_envs`` at a time, fewer in the last wave."""
    generator = make_generator(model, envs.task.codec, greedy=True)
    return collect_waves(envs, generator, question_index, seed=0, on_progress=on_progress)


@dataclass(frozen=True)
class EvaluateConfig:
    """Answer questions greedily, each exactly once. A limit that is not given is that of the question set: small for
    TinyWiki, Search-R1's for real text."""

    model: str = "tiny"
    """Policy: "tiny", a checkpoint of agents.ppo, a Hugging Face directory or hub name, or a GGUF file."""
    questions: str = "tinywiki"
    """Question set: "tinywiki", "hotpotqa:FOLDER" (see docs/data.md), "jsonl:PATH", or "package.module:attribute"."""
    corpus: Path | None = None
    """JSON-lines file of passages, for question sets that bring none."""
    split: str = "test"
    """Split of the question set; "all" takes every question of a JSON-lines file."""
    kinds: tuple[str, ...] = ("1-hop", "2-hop")
    """TinyWiki: kinds of questions."""
    limit: int | None = None
    """Only the first so many questions."""
    retriever: str = "bm25"
    """Retriever: "bm25", "oracle", "random", "noisy", or "package.module:attribute"."""
    top_k: int | None = None
    """Documents per search; by default 1 in TinyWiki, else 3."""
    max_turns: int | None = None
    """Turns before the last one, in which only an answer counts; by default 4."""
    max_turn_tokens: int | None = None
    """Tokens that the policy may write in a turn; by default 24 in TinyWiki, else 500."""
    max_observation_tokens: int | None = None
    """Tokens that one search may append; by default 96 in TinyWiki, else 500."""
    max_context_tokens: int | None = None
    """Tokens of an episode; by default 640 in TinyWiki, else 4096."""
    batch_size: int = 64
    """Questions that are answered at the same time; lower it when memory runs out."""
    seed: int = 0
    """Seed of the bootstrap intervals; the answers have no randomness."""
    run_dir: Path = Path("runs/eval")
    """Where config.json, transcripts.jsonl and summary.json go; files of an earlier run are replaced."""
    resume: bool = False
    """Go on with an interrupted run of the same options in run_dir."""
    threads: int | None = None
    """Torch's CPU threads; by default torch decides."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""

    @property
    def env(self) -> EnvConfig:
        """The environment that these options describe."""
        base = EnvConfig() if self.questions == "tinywiki" else REAL_TEXT
        names = {field.name for field in fields(EnvConfig)} & {field.name for field in fields(self)}
        return replace(base, **{name: value for name in names if (value := getattr(self, name)) is not None})


def main(config: EvaluateConfig, console: Console | None = None) -> dict[str, Any]:
    """Run an evaluation, write its files, show a table, and return what ``summary.json`` holds.

    Raises:
        OptionError: ``limit`` or ``batch_size`` below 1, or ``resume`` in a folder of other options.
    """
    console = console or Console()
    for name in ("limit", "batch_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise OptionError(f"expected {name} >= 1, got {getattr(config, name)}; do: leave it out for the default")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    path = config.run_dir / "transcripts.jsonl"
    rows = _saved_rows(config, path) if config.resume else []
    if not rows:
        path.unlink(missing_ok=True)  # before the options that a later --resume trusts are replaced
    (config.run_dir / "summary.json").unlink(missing_ok=True)
    write_config(config.run_dir, config)

    policy, codec = load_policy(config.model)
    policy.to(choose_device(config.device))
    has_value_head = Path(config.model, VALUE_HEAD_FILE).is_file()
    envs = make_envs(config.env, codec, 1)
    num_questions = min(len(envs.task.questions), config.limit or len(envs.task.questions))
    if len(rows) != num_questions:
        # What is left is cut into the same waves as in a run without interruption.
        rows = rows[: len(rows) // config.batch_size * config.batch_size]
    write_text(path, "".join(map(_line, rows)))
    if remaining := range(len(rows), num_questions):
        envs = make_envs(config.env, codec, min(config.batch_size, len(remaining)), **reuse(envs))
        with (
            question_progress(console, num_questions, done=len(rows)) as report,
            path.open("a", encoding="utf-8") as file,
        ):
            for wave in greedy_waves(policy.model, envs, remaining, on_progress=report):
                new = describe(wave, codec, label="greedy", policy=policy if has_value_head else None)
                file.writelines(map(_line, new))
                file.flush()
                rows += new

    estimates = estimate(rows, [row["kind"] for row in rows], config.seed)
    summary = {
        "command": command_line(),
        "config": to_jsonable(config),
        "seed": config.seed,
        "num_questions": len(rows),
        "metrics": to_plain(estimates),
    }
    write_json(config.run_dir / "summary.json", summary)
    console.print(table_of(estimates, title=f"{config.model}: {len(rows)} questions"))
    return summary


def _saved_rows(config: EvaluateConfig, transcripts: Path) -> list[dict[str, Any]]:
    """The rows that an interrupted run of the same options has written, without a last one that is half written."""
    path = config.run_dir / "config.json"
    if not path.exists() or not transcripts.exists():
        return []
    theirs, ours = json.loads(path.read_text(encoding="utf-8")), to_jsonable(config)
    different = sorted(name for name in ours.keys() - {"run_dir", "resume"} if theirs.get(name) != ours[name])
    if different:
        raise OptionError(
            f"expected the options of the run in {config.run_dir} to resume it, got other values of {different}; "
            "do: repeat them (they are in its config.json), choose another run_dir, or leave out --resume"
        )
    *lines, _ = transcripts.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


@contextmanager
def question_progress(console: Console, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` questions, ``done`` of which are; told how many more are, it moves on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("questions", total=total, completed=done)
        yield lambda finished: progress.update(task, completed=done + finished)


def table_of(estimates: Mapping[str, Mapping[str, Estimate]], title: str) -> Table:
    table = Table(title=title, caption="mean and 95 % interval over questions")
    table.add_column("")
    for kind in estimates:
        table.add_column(kind, justify="right")
    for metric in METRICS:
        found = [by_metric[metric] for by_metric in estimates.values()]
        table.add_row(metric, *(f"{e.mean:.2f} \\[{e.low:.2f}, {e.high:.2f}]" for e in found))
    return table


if __name__ == "__main__":
    disable_progress_bar()
    try:
        main(tyro.cli(EvaluateConfig, prog="python -m agents.evaluate", description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
