"""The training runs of the exercise `diagnose`, cut out of a collapse study.

    python -m benchmarks.exercise_runs benchmarks/results/collapse

Takes the runs of the first seeds in which one setting was changed, or none. Writes ``runs.json.gz``, which students get
(odd seeds), and ``_unseen.json.gz``, which only the checks read (even seeds), into the exercise's material, and the
chart of one run into its page. Of runs with the same metrics one is kept: two cells may come to the same.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.collapse.records import EM, Record, load
from benchmarks.collapse.table import read_runs
from search_gym.exercises.catalogue import load as load_exercise

SEEN, UNSEEN = "runs.json.gz", "_unseen.json.gz"
GROUPS, SEEDS = ("rates", "causes", "remedies"), (1, 2, 3, 4)
"""The study's groups that change one setting at a time in the same environment, and enough seeds for an exercise."""
METRICS = (
    EM,
    "rollout/searches",
    "rollout/valid_turns",
    "rollout/truncated",
    "rollout/sampled_tokens",
    "rollout/zero_variance_groups",
    "rollout/query_retrieval",
    "rollout/logprob_correct",
    "rollout/logprob_incorrect",
    "loss/entropy",
    "loss/grad_norm",
    "loss/clip_fraction",
    "loss/approx_kl",
    "loss/ratio_max",
    "loss/likelihood_gain_good",
    "loss/explained_variance",
)
CHART, UPDATES = "grpo-kl-k3-loss, seed 1", slice(24, 40)
CHARTED = (EM, "loss/approx_kl", "rollout/valid_turns", "rollout/zero_variance_groups", "loss/grad_norm")
BEGIN, END = "<!-- chart:begin (made by `python -m benchmarks.exercise_runs`; do not edit) -->", "<!-- chart:end -->"
HEALTHY_KL, LARGE_KL = 0.06, 0.1
"""Largest KL of an update of a run that is called healthy, and least of one whose steps are called too large: runs in
between are nobody's example."""


def cause(record: Record) -> str | None:
    """What the run's settings say about its fate, where its metrics bear it out; None where that is open.

    "unmasked documents": trained on what the environment wrote. "entropy bonus": one so large that nothing was learned.
    "steps too large": failed at 1.5 times the centre's learning rate or with 10 updates a round, having moved far in a
    single update. "healthy": learned and kept it, at half the centre's learning rate or less.
    """
    levels = record.levels
    largest = float(np.nanmax(record.metrics["loss/approx_kl"]))
    if levels.get("information_mask") is False:
        return "unmasked documents"
    if levels.get("entropy") and record.outcome.kind == "never learned":
        return "entropy bonus"
    large = float(levels["learning_rate"]) >= 6e-3 or int(levels["updates_per_round"]) >= 10
    if large and record.outcome.failed and largest >= LARGE_KL:
        return "steps too large"
    if float(levels["learning_rate"]) <= 2e-3 and not record.outcome.failed and largest < HEALTHY_KL:
        return "healthy"
    return None


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the exercise says of each run: name, algorithm, cause, and metrics with a number or null for each update."""
    found: list[dict[str, Any]] = []
    for record in records:
        metrics = {
            name: [_short(value, exact=name == EM) for value in record.metrics[name].tolist()]
            for name in METRICS
            if name in record.metrics and np.isfinite(record.metrics[name]).any()
        }
        if all(metrics != other["metrics"] for other in found):
            name = f"{record.cell}, seed {record.seed}"
            found.append({"name": name, "algorithm": record.algorithm, "cause": cause(record), "metrics": metrics})
    return found


def write(folder: Path, output: Path) -> None:
    """Both files in ``output``, from the study in ``folder``; the same study gives the same bytes."""
    group = {(row["cell"], row["seed"]): row["group"] for row in read_runs(folder)}
    records = [r for r in load(folder).records if group[r.cell, r.seed] in GROUPS and r.seed in SEEDS]
    for name, rest in ((SEEN, 1), (UNSEEN, 0)):
        text = json.dumps(rows([record for record in records if record.seed % 2 == rest]), separators=(",", ":"))
        (output / name).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a file that `write` made."""
    return json.loads(gzip.decompress(path.read_bytes()))


def chart(runs: Sequence[Mapping[str, Any]]) -> str:
    """The updates around the collapse of the run `CHART` as a Markdown table."""
    (run,) = [run for run in runs if run["name"] == CHART]
    metrics = {name: run["metrics"][name][UPDATES] for name in CHARTED}
    lines = ["| update | " + " | ".join(str(i) for i in range(UPDATES.start, UPDATES.stop)) + " |"]
    lines.append("|---|" + "---:|" * (UPDATES.stop - UPDATES.start))
    return "\n".join(
        [
            *lines,
            *(f"| `{name}` | " + " | ".join(f"{v:.2f}" for v in values) + " |" for name, values in metrics.items()),
        ]
    )


def with_chart(page: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """``page`` with the chart between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chart(runs)}\n{END}{after}"


def _short(value: float, exact: bool) -> float | None:
    """Four digits, which is more than any metric is worth; but exact match is a count over the episodes of a round, and
    whether it is below half of another is decided by its last digit where it is just half."""
    return (value if exact else float(f"{value:.4g}")) if np.isfinite(value) else None


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional] = Path("benchmarks/results/collapse")
    """A study: ``study.json``, ``runs.jsonl`` and ``table.parquet``."""
    output: Path = load_exercise("diagnose").folder
    """Where both files go."""


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    write(options.folder, options.output)
    page = options.output / "page.md"
    page.write_text(with_chart(page.read_text(encoding="utf-8"), read(options.output / SEEN)), encoding="utf-8")
