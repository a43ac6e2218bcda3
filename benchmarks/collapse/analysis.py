"""The statistics of a study: ``analysis.json``, from which docs/findings.md and the report are made.

    python -m benchmarks.collapse.analysis runs/collapse-full

Reads ``study.json``, ``runs.jsonl`` and ``table.parquet``, of studies that are not finished too. Whatever is told rests
on finished runs alone, and says on how many. docs/collapse.md explains the study.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from agents.runlog import write_json
from benchmarks.collapse import comparison, effects, indicators, main_effects, survival
from benchmarks.collapse.definition import DEFAULT, Definition, outcome, smoothed
from benchmarks.collapse.estimates import Interval, Scores, bootstrap, bootstrap_coverage, iqm
from benchmarks.collapse.records import Record, StudyData, load
from search_gym.errors import SearchGymError

ANALYSIS = "analysis.json"
ALTERNATIVES = (
    DEFAULT,
    Definition(window=3),
    Definition(window=8),
    Definition(fraction=0.4),
    Definition(fraction=0.6),
    Definition(patience=3),
    Definition(patience=8),
    Definition(floor=0.05),
    Definition(floor=0.2),
)
"""Definitions of a collapse that differ in one number from the one that is used."""


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse.analysis", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the study")
    try:
        print(analyse(parser.parse_args(args).folder))
    except SearchGymError as error:
        sys.exit(f"error: {error}")


def analyse(folder: Path) -> Path:
    """Write ``analysis.json`` into the folder of a study and return its path.

    Raises:
        OptionError: there is no study.
        MissingDependencyError: the extra "study" is not installed.
    """
    path = folder / ANALYSIS
    write_json(path, analysis_of(load(folder)))
    return path


def analysis_of(data: StudyData) -> dict[str, Any]:
    """Everything that is told of a study, as JSON has it."""
    study = data.study
    return {
        "study": {
            name: study.get(name)
            for name in ("name", "title", "commit", "machine", "torch", "budget", "evaluation", "seeds", "center")
        },
        "factors": study["factors"],
        "commits": sorted({record.commit for record in data.records if record.commit}),
        "definition": {"words": DEFAULT.words, **asdict(DEFAULT)},
        "coverage": coverage(data),
        "runs": [_run(record) for record in data.records],
        "cells": cells(data),
        "levels": levels(data),
        "algorithms": effects.algorithm_effects(data),
        "effects": effects.effects(data),
        "trends": main_effects.trends(data),
        "fraction": main_effects.fraction(data),
        "indicators": indicators.evaluate_all(data.records),
        "collapse_after_peak": indicators.time_from_peak(data.records).plain(1),
        "comparison": comparison.compare(data),
        "sensitivity": sensitivity(data),
        "flat_policies": flat_policies(),
        "bootstrap_coverage": {str(runs): round(bootstrap_coverage(runs), 3) for runs in (3, 5, 10)},
    }


def coverage(data: StudyData) -> dict[str, Any]:
    """How much of what was planned is finished, in all and for each group of cells."""
    status = [run["status"] for run in data.planned]
    groups = []
    for group in data.study["groups"]:
        names = {cell["cell"] for cell in data.cells_of(group["name"])}
        finished = [record for record in data.records if record.cell in names]
        groups.append(
            {
                "group": group["name"],
                "question": group["question"],
                "fairness": group["fairness"],
                "design": group["design"],
                "cells": len(names),
                "cells_with_runs": len({record.cell for record in finished}),
                "planned": sum(run["cell"] in names for run in data.planned),
                "finished": len(finished),
                "seeds": sorted({record.seed for record in finished}),
            }
        )
    return {
        "runs_planned": len(status),
        "runs_finished": status.count("finished"),
        "runs_failed": status.count("failed"),
        "cells_planned": len(data.study["cells"]),
        "cells_with_runs": len({record.cell for record in data.records}),
        "groups": groups,
    }


def cells(data: StudyData) -> list[dict[str, Any]]:
    """Every cell that has finished runs."""
    found = []
    for cell in data.study["cells"]:
        records = data.of_cell(cell["cell"])
        if not records:
            continue
        kinds = records[0].kinds
        scores = np.array([[record.held_out[kind] for kind in kinds] for record in records])
        found.append(
            {
                **{name: cell[name] for name in ("cell", "label", "algorithm", "group", "levels")},
                "groups": cell.get("groups", [cell["group"]]),
                "seeds": [record.seed for record in records],
                **survival.summary(records),
                "held_out": {
                    "iqm": bootstrap(iqm, scores).plain(),
                    "by_kind": {kind: bootstrap(iqm, scores[:, i : i + 1]).plain() for i, kind in enumerate(kinds)},
                },
                "best_em": _iqm([record.outcome.best for record in records]).plain(),
                "final_em": _iqm([record.outcome.final for record in records]).plain(),
                "curve": curve(records),
            }
        )
    return found


def curve(records: Sequence[Record]) -> dict[str, list[float]]:
    """The interquartile mean over runs of the smoothed exact match by update, with its bootstrap interval."""
    length = min(len(record.em) for record in records)
    means = np.array([smoothed(record.em)[:length] for record in records])
    rng = np.random.default_rng(0)
    drawn = means[rng.integers(len(records), size=(500, len(records)))]
    low, high = np.quantile(_trimmed(drawn), (0.025, 0.975), axis=0)
    parts = {"mean": _trimmed(means), "low": low, "high": high}
    return {"update": [*range(1, length + 1)], **{name: [*values.round(4).tolist()] for name, values in parts.items()}}


def levels(data: StudyData) -> list[dict[str, Any]]:
    """Survival by level of each factor that a crossing or a fraction varies, over all levels of the others; in a
    crossing, for each algorithm by itself too."""
    found = []
    for group in data.study["groups"]:
        if group["design"] not in ("crossing", "fraction"):
            continue
        names = {cell["cell"] for cell in data.cells_of(group["name"])}
        records = [record for record in data.records if record.cell in names]
        for algorithm in sorted({record.algorithm for record in records}):
            found.append((group, "algorithm", algorithm, None, [r for r in records if r.algorithm == algorithm]))
        own = sorted({record.algorithm for record in records}) if group["design"] == "crossing" else []
        for factor, values in group["factors"].items():
            if factor == "algorithm":
                continue
            for value in values:
                for algorithm in (None, *own):
                    some = [
                        record
                        for record in records
                        if record.levels.get(factor) == value and algorithm in (None, record.algorithm)
                    ]
                    found.append((group, factor, value, algorithm, some))
    return [
        {"group": group["name"], "factor": factor, "level": level, "algorithm": algorithm, **survival.summary(some)}
        for group, factor, level, algorithm, some in found
        if some
    ]


def sensitivity(data: StudyData) -> list[dict[str, Any]]:
    """How many runs of each algorithm collapse by each of `ALTERNATIVES`, and the difference of GRPO from PPO over
    pairs that are equal in everything else."""
    algorithms = sorted({record.algorithm for record in data.records})
    rows = []
    for definition in ALTERNATIVES:
        kinds = {id(record): record.outcome_by(definition).kind for record in data.records}
        is_collapse = {key: float(kind == "collapsed") for key, kind in kinds.items()}
        counts: dict[str, Mapping[str, int]] = {}
        for algorithm in algorithms:
            own = [kinds[id(record)] for record in data.records if record.algorithm == algorithm]
            counts[algorithm] = {
                "n": len(own),
                "collapsed": own.count("collapsed"),
                "never_learned": own.count("never learned"),
            }
        pairs = effects.pairs_of(data, effects.algorithm_settings(data.study, "grpo", "ppo", preset="matched"))
        by_seed = effects.by_seed(pairs, lambda record, found=is_collapse: found[id(record)]) if pairs else {}
        rows.append(
            {
                **{name: value for name, value in asdict(definition).items() if name != "recovery"},
                "algorithms": counts,
                "pairs": len(pairs),
                "grpo_minus_ppo": effects.student([*by_seed.values()]).plain() if by_seed else None,
            }
        )
    return rows


def flat_policies(repeats: int = 400, updates: int = 40) -> list[dict[str, float]]:
    """How often the definition calls a run collapsed whose policy never changes: rounds of 24 questions in groups of 5,
    a third of them 1-hop, each with a probability of success of its own (a beta distribution with that mean and the
    weight of one observation)."""
    rng = np.random.default_rng(0)
    found = []
    for one, two in ((0.3, 0.05), (0.45, 0.02), (0.6, 0.1), (0.9, 0.3)):
        is_one = rng.random((repeats, updates, 24)) < 1 / 3
        solved = np.where(is_one, rng.beta(one, 1 - one, is_one.shape), rng.beta(two, 1 - two, is_one.shape))
        curves = rng.binomial(5, solved).sum(2) / 120
        collapsed = fmean(outcome(em).kind == "collapsed" for em in curves)
        found.append({"one_hop": one, "two_hop": two, "collapsed": round(collapsed, 4)})
    return found


def _run(record: Record) -> dict[str, Any]:
    found = asdict(record.outcome)
    return {
        "cell": record.cell,
        "algorithm": record.algorithm,
        "seed": record.seed,
        "folder": record.folder,
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()},
        "held_out": round(fmean(record.held_out[kind] for kind in record.kinds), 4),
    }


def _iqm(values: Sequence[float]) -> Interval:
    scores: Scores = np.array(values)[:, None]
    return bootstrap(iqm, scores)


def _trimmed(values: Scores) -> Scores:
    """The interquartile mean of (..., runs, updates) over runs."""
    return iqm(np.moveaxis(values, -1, -2)[..., None])


if __name__ == "__main__":
    main()
