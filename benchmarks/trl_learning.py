"""Does the tiny model learn to search with TRL's GRPOTrainer, and how long does it take next to ours?

    pip install -e '.[agents,trl]'
    python -m benchmarks.trl_learning

TRL's trainer plays through the ``rollout_func`` of `search_gym.adapters.trl`; `agents.grpo` has the same questions in
the same order, sizes, limits, loss, KL term, optimiser and number of threads. Each is a process of its own; they take
turns, update by update, so that whatever else the machine does hits both alike. Before and after, the policy answers
questions of worlds that training never sees, greedily; what TRL has saved is loaded for that as any other checkpoint.

Exact match of an update is that of its sampled episodes. Seconds are sums over all updates, of rollouts and optimiser
steps, by either clock; ``times_as_long`` is TRL's wall time over ours, whole and as quantiles over single updates. One
seed shows that it learns and what that costs, not which of the two learns better.

Writes one JSON file, and the table of docs/adapters/trl.md from it.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from agents.checkpoint import load_policy
from agents.demo import held_out
from agents.evaluate import evaluate, to_plain
from agents.runlog import to_jsonable, write_json, write_text
from agents.tasks import EnvConfig, make_envs
from benchmarks.paced_workers import TRAINS, TRL_TRAINS, Training, Worker, Workers, has_trl, machine, say, spread
from benchmarks.pages import put
from search_gym.errors import MissingDependencyError, SearchGymError

OURS, TRL = "agents.grpo", "TRL's GRPOTrainer"
METRICS = ("em", "searches", "sampled_tokens")
MODULE, PAGE = "benchmarks.trl_learning", Path("docs/adapters/trl.md")


@dataclass(frozen=True)
class LearningConfig(Training):
    """Options of the benchmark."""

    updates: int = 16
    """Rounds of rollouts, each with the optimiser's steps on it."""
    episodes: int = 64
    """Episodes in a round of rollouts."""
    minibatch_size: int = 16
    """Episodes per optimiser step."""
    learning_rate: float = 2e-3
    """Of both optimisers, the same from first to last."""
    env: EnvConfig = field(default_factory=lambda: EnvConfig(kinds=("1-hop",)))
    questions_per_kind: int = 300
    """Held-out questions of each number of hops."""
    trl_python: Path | None = None
    """The Python interpreter that has TRL; by default the one that runs this."""
    output: Path = Path("benchmarks/results/trl_learning.json")
    """The JSON file to write."""


def train(config: LearningConfig, workers: Mapping[str, Worker]) -> dict[str, list[dict[str, Any]]]:
    """The reports of every worker: one for each update, and in the end where its policy is."""
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for update in range(config.updates + 1):
        for name, worker in list(workers.items())[:: 1 if update % 2 else -1]:
            reports[name].append(worker.work({}))
        if update < config.updates:
            found = ", ".join(f"{name} {rows[-1]['em']:.2f}" for name, rows in reports.items())
            say(f"update {update + 1} of {config.updates}: exact match of the sampled episodes: {found}")
    return reports


def answer(model: str | Path, config: LearningConfig) -> dict[str, Any]:
    """What a policy does on the held-out questions, greedily: `METRICS` with 95 % intervals."""
    policy, codec = load_policy(model)
    envs, index = held_out(config.env, codec, make_envs, config.questions_per_kind)
    metrics = to_plain(evaluate(policy.model, envs, index, seed=config.seed).estimates)["all"]
    return {"questions": len(index), **{name: metrics[name] for name in METRICS}}


def run(config: LearningConfig) -> dict[str, Any]:
    """All figures.

    Raises:
        MissingDependencyError: there is no TRL. RuntimeError: a worker fails.
    """
    python = config.trl_python or Path(sys.executable)
    if not has_trl(python):
        raise MissingDependencyError(f"expected TRL >= 1.16 for {python}, got none; do: pip install 'search-gym[trl]'")
    settings = config.settings() | {"updates": config.updates, "at_a_time": config.episodes}
    before = answer(config.model, config)
    with tempfile.TemporaryDirectory() as folder, Workers(Path(folder), config.threads) as workers:
        started = {
            OURS: workers.start(OURS, [sys.executable, "-m", TRAINS], settings),
            TRL: workers.start(TRL, [python, "-m", TRL_TRAINS], settings),
        }
        workers.wait()
        reports = train(config, started)
        after = {name: answer(rows.pop()["checkpoint"], config) for name, rows in reports.items()}
    return {
        "machine": machine(config.threads, started[TRL]),
        "before": before,
        "trained": {name: {"after": after[name], **figures(rows)} for name, rows in reports.items()},
        "times_as_long": times_as_long(reports[OURS], reports[TRL]),
    }


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The course of a training and what it took."""
    return {
        "em_of_updates": [round(row["em"], 4) for row in rows],
        "sampled_tokens": round(statistics.mean(row["sampled_tokens"] for row in rows), 2),
        "wall_seconds": round(sum(row["wall"] for row in rows), 2),
        "cpu_seconds": round(sum(row["cpu"] for row in rows), 2),
    }


def times_as_long(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """TRL's seconds over ours by either clock, of all updates together and of single ones."""
    return {
        clock: {
            "all": round(sum(row[clock] for row in theirs) / sum(row[clock] for row in ours), 2),
            "update": spread([b[clock] / a[clock] for a, b in zip(ours, theirs, strict=True)], 2),
        }
        for clock in ("wall", "cpu")
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    options, versions = result["options"], result["machine"]["trl"]
    lines = [
        f"`{result['command']}`, TRL {versions['trl']}, transformers {versions['transformers']}, torch "
        f"{versions['torch']}: {options['updates']} updates of {options['episodes']} episodes, "
        f"{options['threads']} thread each, {result['before']['questions']} held-out questions, one seed.",
        "",
        "| policy | held-out exact match | searches | wall s | CPU s |",
        "|---|---:|---:|---:|---:|",
        f"| base | {_em(result['before'])} | {result['before']['searches']['mean']:.2f} | | |",
    ]
    for name, row in result["trained"].items():
        after = row["after"]
        lines.append(
            f"| {name} | {_em(after)} | {after['searches']['mean']:.2f} | {row['wall_seconds']:.0f} | "
            f"{row['cpu_seconds']:.0f} |"
        )
    wall, cpu = (result["times_as_long"][clock] for clock in ("wall", "cpu"))
    lines += [
        "",
        f"An update of TRL's took {wall['update']['median']:.1f} times as long as one of ours (quartiles "
        f"{wall['update']['lower_quartile']:.1f} and {wall['update']['upper_quartile']:.1f}), by CPU time "
        f"{cpu['update']['median']:.1f} times ({cpu['update']['lower_quartile']:.1f} and "
        f"{cpu['update']['upper_quartile']:.1f}).",
    ]
    return "\n".join(lines)


def _em(found: Mapping[str, Any]) -> str:
    em = found["em"]
    return f"{em['mean']:.2f} [{em['low']:.2f}, {em['high']:.2f}]"


def main(config: LearningConfig, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Train and answer, print the table, and write everything down with the command line's ``arguments``."""
    torch.set_num_threads(config.threads)
    result = {
        "command": shlex.join(["python", "-m", MODULE, *arguments]),
        "options": to_jsonable(config),
        **run(config),
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, result)
    print(table(result))
    if config.output == LearningConfig.output and PAGE.is_file():
        write_text(PAGE, put(PAGE.read_text(encoding="utf-8"), "figures", MODULE, table(result)))
    return result


if __name__ == "__main__":
    try:
        main(tyro.cli(LearningConfig, prog=f"python -m {MODULE}", description=__doc__), sys.argv[1:])
    except SearchGymError as error:
        sys.exit(f"error: {error}")
