"""A small study that is real: trained, evaluated, and written as the runner does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.collapse.folder import write_study
from benchmarks.collapse.run import run_one
from benchmarks.collapse.study import Study
from benchmarks.collapse.study_file import parse
from benchmarks.collapse.table import write_tables

FILE: dict[str, Any] = {
    "name": "small",
    "title": "PPO & GRPO, very small",
    "seeds": [1, 2],
    "size": {"updates": 4, "rollouts_per_update": 16},
    "evaluation": {"questions_per_kind": 6, "transcripts_per_kind": 2},
    "center": {"group_size": 4},
    "groups": [
        {
            "name": "rates",
            "question": "At which learning rates is <anything> learned?",
            "design": "crossing",
            "algorithms": ["ppo", "grpo"],
            "factors": {"learning_rate": [4e-3]},
            "fixed": {"reward": "format"},
        }
    ],
}


def make_study(folder: Path) -> Study:
    """Write the study's folder with all of its runs and their tables, in this process, and return the study."""
    study = parse(FILE)
    write_study(folder, study)
    for run in study.runs():
        run_one(run, folder, study.evaluation)
    write_tables(study, folder)
    return study
