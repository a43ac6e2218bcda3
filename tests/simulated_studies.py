"""Studies whose truth is known: runs that learn, and collapse with a probability of our choosing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.collapse.folder import STUDY
from benchmarks.collapse.records import COMMON, HELD_OUT, Record, StudyData
from benchmarks.collapse.table import RUNS, TABLE, write_parquet

CENTER = {"learning_rate": 4e-3, "group_size": 5, "kl": "none", "kl_coef": 0.005, "top_p": 1.0, "preset": "matched"}


def run(
    cell="cell", *, seed=0, onset=None, peak=0.8, updates=40, algorithm="grpo", levels=None, held_out=None, **metrics
):
    """A run that rises to ``peak``, and falls to nothing at once ``onset`` updates in (from 1), with no noise."""
    em = np.minimum(np.linspace(0, 3 * peak, updates), peak)
    if onset is not None:
        em[onset - 1 :] = 0.0
    score = float(em[-1]) if held_out is None else held_out
    shown = {"1-hop": score, "2-hop": score, "all": score}
    values = {name: np.asarray(value, dtype=np.float64) for name, value in metrics.items()}
    return Record(
        cell, algorithm, levels or CENTER, seed, np.arange(1, updates + 1), {"rollout/em": em, **values}, shown, shown
    )


def cell_of(name, algorithm, *, groups=("causes",), **levels):
    """What study.json says of a cell."""
    return {
        "cell": name,
        "label": name,
        "algorithm": algorithm,
        "group": groups[0],
        "groups": list(groups),
        "levels": {**CENTER, **levels},
        "options": {},
        "seeds": [],
    }


def study(cells: Sequence[Mapping], records: Sequence[Record], groups: Sequence[Mapping] = ()) -> StudyData:
    """A study of these cells and finished runs."""
    names = {name for cell in cells for name in cell["levels"]}
    description = {
        "name": "simulated",
        "title": "a simulated study",
        "command": "python -m benchmarks.collapse --study simulated.toml",
        "commit": "0123456789ab",
        "machine": {"system": "Linux", "architecture": "x86_64", "cpus": 2},
        "torch": "2.13.0",
        "budget": {"updates": 40, "rollouts_per_update": 120, "prompts_per_update": 24},
        "evaluation": {"questions_per_kind": 100, "transcripts_per_kind": 4},
        "seeds": sorted({record.seed for record in records}),
        "factors": {
            name: {
                "label": name.replace("_", " "),
                "levels": [*dict.fromkeys(cell["levels"].get(name) for cell in cells)],
                "center": {**CENTER, "value_mask": True}[name],
            }
            for name in sorted(names)
        },
        "groups": [{"question": "?", "fairness": "all equal", "design": "cells", "factors": {}, **g} for g in groups],
        "cells": list(cells),
    }
    planned = [{"cell": record.cell, "seed": record.seed, "status": "finished"} for record in records]
    return StudyData(description, planned, records)


def write_folder(data: StudyData, folder: Path) -> None:
    """Write what a study leaves in its folder, without the runs' own."""
    (folder / STUDY).write_text(json.dumps(data.study))
    runs, updates = [], []
    for record in data.records:
        who = {"cell": record.cell, "algorithm": record.algorithm, "seed": record.seed}
        who |= {f"factor.{name}": level for name, level in record.levels.items()}
        scores = {HELD_OUT + kind: score for kind, score in record.held_out.items()}
        scores |= {COMMON + kind: score for kind, score in record.held_out_common.items()}
        runs.append({**who, "status": "finished", "updates": len(record.updates), **scores})
        for i, update in enumerate(record.updates.tolist()):
            numbers = {name: float(values[i]) for name, values in record.metrics.items()}
            updates.append({**who, "update": update, **numbers})
    (folder / RUNS).write_text("".join(json.dumps(row) + "\n" for row in runs))
    write_parquet(folder / TABLE, updates)
