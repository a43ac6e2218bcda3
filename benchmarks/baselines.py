"""The table of Search-R1's paper for TinyWiki: every method on the same held-out questions, by number of hops.

    python -m benchmarks.baselines --jobs 2
    python -m benchmarks.baselines --hops 3 --output benchmarks/results/baselines_3hop.json

Writes one JSON file (the command, the machine, for each method exact match, searches and tokens with 95 % intervals and
how long it was trained, and paired differences between searching and static retrieval) and a Markdown table beside it.
Finished rows are kept in ``--work-dir``, so an interrupted benchmark goes on where it stopped; delete a row's folder to
make it again.

The tiny model cannot follow a prompt. In the place of a prompting method stands its trained counterpart: fine-tuning on
demonstrations that a program writes in the form of that method (``agents.baselines.demonstrations``).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from transformers.utils.logging import disable_progress_bar

from agents.config import pick
from agents.evaluate import Estimate, bootstrap_interval, estimate, to_plain
from agents.runlog import command_line, to_jsonable, write_json, write_text
from benchmarks.baseline_methods import METHODS, METRICS, Size
from search_gym.errors import OptionError, SearchGymError

COMPARED = (
    ("ppo", "static-rag-ppo"),
    ("ppo", "static-rag-max-ppo"),
    ("grpo", "static-rag-max-ppo"),
    ("react", "static-rag-max"),
    ("ircot", "static-rag-max"),
    ("self-rag", "static-rag-max"),
)


@dataclass(frozen=True)
class BaselinesConfig:
    """Options of the benchmark."""

    methods: tuple[str, ...] = ()
    """Rows to make; by default all of them."""
    size: Annotated[Size, tyro.conf.arg(name="")] = field(default_factory=Size)
    num_seeds: int = 1
    """Training seeds 1 to this number; a cell is the mean over them."""
    jobs: int = 2
    """Rows at a time, one torch thread each."""
    output: Path = Path("benchmarks/results/baselines.json")
    """The JSON file to write; the Markdown table goes beside it."""
    work_dir: Path = Path("runs/baselines")
    """Where the runs go."""


def run_method(size: Size, name: str, seed: int, run_dir: Path) -> dict[str, Any]:
    """Train and evaluate a method; a result that is already in its folder, of the same options, is returned as it is.

    Raises:
        OptionError: the folder holds a result of other options.
    """
    result_file = run_dir / "result.json"
    options = to_jsonable(size)
    if result_file.exists():
        result = json.loads(result_file.read_text(encoding="utf-8"))
        if result["options"] != options:
            raise OptionError(
                f"expected a result of the options {options} in {run_dir}, got one of {result['options']}; "
                "do: choose another --work-dir, or delete the folder"
            )
        return result
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    disable_progress_bar()
    with (run_dir / "log.txt").open("w", encoding="utf-8") as log, redirect_stdout(log):
        outcome = METHODS[name].run(size, seed, run_dir)
    result = {"method": name, "seed": seed, "options": options, **outcome._asdict()}
    write_json(result_file, result)
    return result


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table from the results of one method, one for each seed.

    Every question's score is its mean over seeds, and the intervals are over questions.
    """
    first = results[0]
    metrics = tuple(first["scores"][0])
    return {
        "method": first["method"],
        "seeds": [result["seed"] for result in results],
        "metrics": to_plain(estimate(mean_scores(results), first["kinds"], 0, metrics=metrics)),
        "em_of_seeds": [em_by_kind(result) for result in results],
        "train_seconds": round(float(np.mean([result["train_seconds"] for result in results])), 1),
        "train_cpu_seconds": round(float(np.mean([result["train_cpu_seconds"] for result in results])), 1),
    }


def em_by_kind(result: Mapping[str, Any]) -> dict[str, float]:
    """Mean exact match of each kind of question."""
    em, kinds = np.array([row["em"] for row in result["scores"]]), np.array(result["kinds"])
    return {kind: round(float(em[kinds == kind].mean()), 4) for kind in dict.fromkeys(result["kinds"])}


def mean_scores(results: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """For each question, the mean over results of each metric."""
    return [
        {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}
        for rows in zip(*(result["scores"] for result in results), strict=True)
    ]


def compare(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much more exact match ``one`` has than ``other`` on the same questions, by kind, with paired intervals."""
    gains = np.array([a["em"] - b["em"] for a, b in zip(mean_scores(one), mean_scores(other), strict=True)])
    kinds = np.array(one[0]["kinds"])
    found = {}
    for kind in dict.fromkeys(one[0]["kinds"]):
        values = gains[kinds == kind][:, None]
        (low,), (high,) = bootstrap_interval(values, 0)
        found[kind] = Estimate(float(values.mean()), float(low), float(high))._asdict()
    return {"method": one[0]["method"], "minus": other[0]["method"], "em": found}


def table(rows: Sequence[Mapping[str, Any]], demonstrations: int) -> str:
    """The rows as a Markdown table: exact match with 95 % intervals, searches, tokens, CPU seconds of training."""
    kinds = [kind for kind in rows[0]["metrics"] if kind != "all"]
    lines = [
        f"| method | trained on | {' | '.join(f'{kind} EM' for kind in kinds)} | searches | tokens | CPU s |",
        f"|---|---|{'---:|' * (len(kinds) + 3)}",
    ]
    for row in rows:
        method = METHODS[row["method"]]
        cells = [_cell(row["metrics"][kind]["em"]) for kind in kinds]
        everything = row["metrics"]["all"]
        cells += [f"{everything[m]['mean']:.1f}" if m in everything else "" for m in METRICS[1:]]
        cells.append(f"{row['train_cpu_seconds']:.0f}" if row["train_cpu_seconds"] else "")
        trained_on = method.trained_on.format(n=f"{demonstrations:,}")
        lines.append(f"| {method.label} | {trained_on} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparisons_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The paired differences as a Markdown table."""
    kinds = list(comparisons[0]["em"])
    lines = [f"| method | minus | {' | '.join(kinds)} |", f"|---|---|{'---:|' * len(kinds)}"]
    for row in comparisons:
        cells = [_cell(row["em"][kind], sign="+") for kind in kinds]
        lines.append(f"| {METHODS[row['method']].label} | {METHODS[row['minus']].label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: Mapping[str, float], sign: str = "") -> str:
    return f"{found['mean']:{sign}.2f} [{found['low']:{sign}.2f}, {found['high']:{sign}.2f}]"


def main(config: BaselinesConfig) -> dict[str, Any]:
    """Make all rows, write the JSON file and the Markdown page, and return what the file holds.

    Raises:
        UnknownNameError: no such method. OptionError: a number out of range, or a work_dir of other options.
    """
    names = [pick("method", name, list(METHODS)) for name in config.methods or METHODS]
    size = config.size
    counts = {"num_seeds": config.num_seeds, "jobs": config.jobs}
    counts |= {"questions_per_kind": size.questions_per_kind, "demonstrations": size.demonstrations}
    for option, value in counts.items():
        if value < 1:
            raise OptionError(f"expected {option} >= 1, got {value}; do: raise it")
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    # Child processes start from a clean interpreter, because torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(config.jobs, mp_context=context) as pool:
        tasks = [(name, seed) for seed in range(1, config.num_seeds + 1) for name in names]
        futures = [
            pool.submit(run_method, size, name, seed, config.work_dir / f"{name}-{seed}") for name, seed in tasks
        ]
        for future in track(
            as_completed(futures), total=len(futures), description="rows", console=Console(stderr=True)
        ):
            result = future.result()
            results[result["method"]].append(result)
    for rows in results.values():
        rows.sort(key=lambda result: result["seed"])
    compared = [(one, other) for one, other in COMPARED if one in results and other in results]
    summary = {
        "command": command_line(),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "torch": torch.__version__,
        **to_jsonable(size),
        "rows": [summarise(rows) for rows in results.values()],
        "comparisons": [compare(results[one], results[other]) for one, other in compared],
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(config.output, summary)
    text = page(summary)
    write_text(config.output.with_suffix(".md"), text)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    return summary


def page(summary: Mapping[str, Any]) -> str:
    """What the Markdown file holds."""
    parts = [f"Made by `{summary['command']}`.", table(summary["rows"], summary["demonstrations"])]
    if summary["comparisons"]:
        parts += ["Exact match of one method minus that of another on the same questions:"]
        parts += [comparisons_table(summary["comparisons"])]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    try:
        main(tyro.cli(BaselinesConfig, prog="python -m benchmarks.baselines", description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
