"""Finished runs of `benchmarks.real_lm` side by side: exact match, and what searching adds to each other method.

    python -m benchmarks.real_lm_compare --runs runs/real-lm-study

Reads every ``result.json`` under ``--runs``, also of runs that were cut short, and writes ``--output`` (JSON), the
learning curves beside it (PNG) and, where it is named, the page ``--page``.

Differences are paired: both methods answered the same questions. An interval is the 95 % percentile bootstrap over
questions, and over the seeds of each method where there are several (both are drawn anew in each of 2,000 resamples).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import tyro

from agents.evaluate import NUM_RESAMPLES, Estimate
from agents.runlog import command_line, write_json, write_text
from benchmarks.real_lm_page import MULTI_HOP, MULTI_HOP_NAME, page, portable, tables
from search_gym.errors import OptionError, SearchGymError

matplotlib.use("Agg")

OTHERS = ("direct", "rag1", "rag3")
SMOOTHED = 5
"""Rounds that a point of a learning curve is the mean of."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    runs: Path = Path("runs/real-lm-study")
    """Folder of the runs' folders."""
    output: Path = Path("benchmarks/results/real_lm.json")
    """The JSON file to write; the curves go beside it."""
    page: Path | None = None
    """Markdown page to write; the curves go to images/ beside it instead."""
    side_by_side: int = 1
    """How many runs shared the GPU, for the page to say so."""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every ``result.json`` under ``folder``; a run that was cut short gets the curve from its ``metrics.jsonl``.

    Raises:
        OptionError: there is none.
    """
    results = []
    for path in sorted(folder.rglob("result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        metrics = path.with_name("metrics.jsonl")
        if "curve" not in result and metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            result["curve"] = [json.loads(line) for line in lines if line.endswith("\n")]
        results.append(result)
    if not results:
        raise OptionError(f"expected result.json in folders under {folder}, got none; do: run benchmarks.real_lm first")
    return results


def name_of(result: Mapping[str, Any]) -> str:
    """Method and algorithm, such as "search, grpo"."""
    config = result["config"]
    return f"{config['method']}, {config['algorithm']}"


def final(result: Mapping[str, Any], when: str = "after") -> Mapping[str, Any] | None:
    """The evaluation before or after training, None where the run did not come so far."""
    return next((evaluation for evaluation in result["evaluations"] if evaluation["when"] == when), None)


def groups_of(row: Row) -> list[str]:
    """The groups of questions that a question belongs to."""
    names = ["all", "yes/no" if row["yes_no"] else "not yes/no", row["set"]]
    if row["kind"] in MULTI_HOP and not row["yes_no"]:
        names.append(MULTI_HOP_NAME)
    return names + ([row["kind"]] if row["kind"] != row["set"] else [])


def scores_of(results: Sequence[Mapping[str, Any]], metric: str, group: str) -> npt.NDArray[np.float64]:
    """``metric`` (S, N) of S results on the N questions of ``group``, in the order of their ids."""
    rows = []
    for result in results:
        evaluation = final(result)
        assert evaluation is not None
        chosen = sorted((row for row in evaluation["scores"] if group in groups_of(row)), key=lambda row: row["id"])
        rows.append([row[metric] for row in chosen])
    return np.array(rows, dtype=np.float64)


def estimate(
    scores: npt.NDArray[np.float64], minus: npt.NDArray[np.float64] | None = None, *, seed: int = 0
) -> Estimate:
    """The mean of ``scores`` (S, N), or what it has more than that of ``minus`` (R, N), and its 95 % interval.

    Raises:
        ValueError: the two are not about as many questions.
    """
    if minus is not None and minus.shape[1] != scores.shape[1]:
        raise ValueError(f"expected the same questions, got {scores.shape[1]} and {minus.shape[1]}")
    rng = np.random.default_rng(seed)
    num_questions = scores.shape[1]
    means = np.empty(NUM_RESAMPLES)
    for i in range(NUM_RESAMPLES):
        questions = rng.integers(num_questions, size=num_questions)
        means[i] = _resampled(scores, questions, rng)
        if minus is not None:
            means[i] -= _resampled(minus, questions, rng)
    low, high = np.quantile(means, (0.025, 0.975))
    mean = scores.mean() - (0.0 if minus is None else minus.mean())
    return Estimate(float(mean), float(low), float(high))


def _resampled(
    scores: npt.NDArray[np.float64], questions: npt.NDArray[np.int64], rng: np.random.Generator
) -> np.float64:
    seeds = rng.integers(len(scores), size=len(scores))
    return scores[seeds][:, questions].mean()


def compare(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables by method and group of questions, and the differences between searching and the other methods.

    Raises:
        OptionError: runs of one name differ in more than their seed.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if final(result) is not None:
            by_name.setdefault(name_of(result), []).append(result)
    for name, finished in by_name.items():
        _check_alike(name, [result["config"] for result in finished])
    groups: dict[str, None] = {}
    for finished in by_name.values():
        for row in final(finished[0])["scores"]:  # type: ignore[index]
            groups |= dict.fromkeys(groups_of(row))
    methods = {name: _summary(finished, list(groups)) for name, finished in by_name.items()}
    differences = []
    for name, finished in by_name.items():
        method, algorithm = name.split(", ")
        others = [f"{other}, {algorithm}" for other in OTHERS] if method == "search" else []
        for other in others:
            if other in by_name and _ids(finished) == _ids(by_name[other]):
                row = {
                    group: estimate(scores_of(finished, "em", group), scores_of(by_name[other], "em", group))._asdict()
                    for group in groups
                }
                differences.append({"method": name, "minus": other, "em": row})
    return {"methods": methods, "differences": differences}


def _check_alike(name: str, configs: Sequence[Mapping[str, Any]]) -> None:
    first = {key: value for key, value in configs[0].items() if key not in ("seed", "run_dir")}
    for config in configs[1:]:
        if other := sorted(key for key, value in first.items() if config.get(key) != value):
            raise OptionError(
                f"expected runs of {name!r} that differ in their seed alone, got others in {other}; do: keep them in "
                "different folders"
            )


def _ids(results: Sequence[Mapping[str, Any]]) -> set[str]:
    return {row["id"] for result in results for row in (final(result) or {"scores": ()})["scores"]}


def _summary(results: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> dict[str, Any]:
    evaluations = [final(result) for result in results]
    before = [evaluation for result in results if (evaluation := final(result, "before")) is not None]
    sets = [evaluation["mean_em_over_sets"] for evaluation in evaluations if evaluation is not None]
    return {
        "seeds": [result["config"]["seed"] for result in results],
        "devices": sorted({result["device"] for result in results}),
        "train_seconds": [result["seconds"]["training"] for result in results],
        "updates": [result["updates"] for result in results],
        "mean_em_over_sets": round(float(np.mean(sets)), 4),
        "mean_em_over_sets_of_seeds": sets,
        "mean_em_over_sets_before": round(float(np.mean([e["mean_em_over_sets"] for e in before])), 4),
        "em": {group: estimate(scores_of(results, "em", group))._asdict() for group in groups},
        "questions": {group: scores_of(results, "em", group).shape[1] for group in groups},
        **{
            metric: {group: round(float(scores_of(results, metric, group).mean()), 4) for group in groups}
            for metric in ("f1", "searches", "valid_turns", "chains", "support")
        },
    }


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Exact match of sampled training episodes over seconds of training, and held-out exact match at both ends."""
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    colours: dict[str, Any] = {}
    for result in results:
        name, rows = name_of(result), result.get("curve", [])
        colour = colours.setdefault(name, f"C{len(colours)}")
        seconds = [row["time/seconds"] for row in rows]
        em = np.array([row["rollout/em"] for row in rows])
        axes.plot(seconds, em, color=colour, lw=0.8, alpha=0.3)
        means = [em[max(0, i - SMOOTHED + 1) : i + 1].mean() for i in range(len(em))]
        axes.plot(seconds, means, color=colour, lw=1.8)
        ends = [evaluation for when in ("before", "after") if (evaluation := final(result, when)) is not None]
        axes.plot(
            [end["train_seconds"] for end in ends],
            [end["means"]["all"]["em"] for end in ends],
            color=colour,
            marker="o",
            ls=":",
        )
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("exact match")
    axes.set_title(f"lines: sampled in training (means of {SMOOTHED} rounds); dots: greedy, held out", fontsize=9)
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    axes.legend(handles=handles, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _slim(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with nothing of each question but its exact match."""
    evaluations = [
        {**evaluation, "scores": {row["id"]: row["em"] for row in evaluation["scores"]}}
        for evaluation in result["evaluations"]
    ]
    names = ("time/seconds", "update", "rollout/em", "rollout/searches", "rollout/valid_turns")
    curve = [{name: row[name] for name in names if name in row} for row in result.get("curve", [])]
    folders = {name: Path(result["config"][name]).name for name in ("data", "run_dir", "split")}
    config = {**result["config"], **folders, "model": result["model"]}
    command = portable(result["command"])
    return {**result, "command": command, "config": config, "evaluations": evaluations, "curve": curve}


def main(config: CompareConfig) -> dict[str, Any]:
    """Compare, write the files, and return what the JSON file holds.

    Raises:
        OptionError: no result.
    """
    results = read_results(config.runs)
    compared = compare(results)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    output = {"command": portable(command_line()), **compared, "runs": [_slim(result) for result in results]}
    write_json(config.output, output)
    curves = config.output.with_suffix(".png")
    if config.page is not None:
        curves = config.page.parent / "images" / curves.name
        curves.parent.mkdir(parents=True, exist_ok=True)
    draw(results, curves)
    if config.page is not None:
        if not compared["methods"]:
            raise OptionError("expected a run that came to its end for a page, got none; do: give runs more --minutes")
        finished = [result for result in results if final(result) is not None]
        text = page(compared, finished, f"images/{curves.name}", side_by_side=config.side_by_side)
        write_text(config.page, text)
    print(tables(compared))
    return output


if __name__ == "__main__":
    try:
        main(tyro.cli(CompareConfig, description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
