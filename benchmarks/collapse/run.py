"""One run of a study, in a process of its own: train, evaluate, and leave ``result.json``.

    python -m benchmarks.collapse.run FOLDER CELL SEED

``FOLDER`` holds the ``study.json`` that ``python -m benchmarks.collapse`` has written. A run that is finished is left
as it is; one that was interrupted goes on from its last saved state, exactly.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from agents import algorithms
from agents.checkpoint import load_policy
from agents.config import TrainConfig
from agents.demo import held_out
from agents.evaluate import Evaluation, evaluate, to_plain
from agents.policy import CausalLMPolicy, CausalLMWithValueHead
from agents.runlog import command_line, write_json, write_text
from agents.tasks import EnvConfig, make_envs
from agents.training_state import drop_states
from agents.transcripts import describe
from benchmarks.collapse.factors import TRAIN_ON_DOCUMENTS
from benchmarks.collapse.folder import commit_of, read_study
from benchmarks.collapse.study import Evaluation as Asked
from benchmarks.collapse.study import Run, config_of
from benchmarks.collapse.trainer import make_trainer, using
from search_gym import TokenCodec
from search_gym.errors import OptionError, SearchGymError

RESULT, TRANSCRIPTS = "result.json", "transcripts.jsonl"
METRICS = ("em", "f1", "searches", "valid_turns", "truncated", "sampled_tokens")


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.collapse.run", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cell")
    parser.add_argument("seed", type=int)
    options = parser.parse_args(args)
    try:
        study = read_study(options.folder)
        run_one(Run(study.cell(options.cell), options.seed), options.folder, study.evaluation)
    except SearchGymError as error:
        sys.exit(f"error: {error}")


def run_one(run: Run, study_folder: Path, asked: Asked) -> dict[str, Any]:
    """Train and evaluate; a result that is already there, of the same options, is returned as it is.

    Raises:
        OptionError: the folder holds a result of other options.
    """
    folder = run.folder(study_folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(run.cell, run.seed, study_folder)
    with locked(folder):
        if (finished := read_result(run, study_folder)) is not None:
            return finished
        result = _make(run, config, asked, study_folder)
        write_json(folder / RESULT, result)
        drop_states(folder, after=-1)  # nothing goes on from here
    return result


def read_result(run: Run, study_folder: Path) -> dict[str, Any] | None:
    """What a finished run has left; None if it is not finished.

    Raises:
        OptionError: it belongs to other options.
    """
    path = run.folder(study_folder) / RESULT
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    names = sorted(
        name
        for name in result["options"].keys() | run.cell.options.keys()
        if result["options"].get(name) != run.cell.options.get(name)
    )
    if names:
        shown = {name: (result["options"].get(name), run.cell.options.get(name)) for name in names}
        raise OptionError(
            f"expected a result of this study's options in {path.parent}, got one in which (then, now) differ: "
            f"{shown}; do: choose another --run-dir, or delete the folder"
        )
    return result


def _make(run: Run, config: TrainConfig, asked: Asked, study_folder: Path) -> dict[str, Any]:
    """Train as the cell says, and evaluate."""
    folder = config.run_dir
    torch.set_num_threads(config.compute.threads)
    disable_progress_bar()
    was_begun = (folder / "metrics.jsonl").exists()
    wall, cpu = time.perf_counter(), time.process_time()
    codec = load_policy(config.model)[1]

    def look(update: int, policy: CausalLMPolicy) -> None:
        _write_transcripts(folder, update, policy, config, codec, asked)

    algorithm = algorithms.load(run.cell.algorithm)
    looks = (0, config.updates // 2)
    trainer = make_trainer(looks, look, train_on_documents=run.cell.options[TRAIN_ON_DOCUMENTS])
    with using(trainer, algorithm):
        policy = algorithm.train(config)
    look(config.updates, policy)
    parts = [_part(folder, update) for update in (*looks, config.updates)]
    write_text(folder / TRANSCRIPTS, "".join(part.read_text(encoding="utf-8") for part in parts if part.exists()))
    for part in parts:
        part.unlink(missing_ok=True)

    own = _ask(policy, config.env, codec, asked.questions_per_kind)
    common_env = replace(EnvConfig(), kinds=config.env.kinds)
    is_common = config.env == replace(common_env, reward=config.env.reward, close_think=config.env.close_think)
    common = own if is_common else _ask(policy, common_env, codec, asked.questions_per_kind)
    return {
        "cell": run.cell.name,
        "label": run.cell.label,
        "algorithm": run.cell.algorithm,
        "levels": dict(run.cell.levels),
        "options": dict(run.cell.options),
        "seed": run.seed,
        "status": "finished",
        "command": command_line(),
        "commit": commit_of(),
        "updates": config.updates,
        "held_out": _plain(own),
        "held_out_common": _plain(common),
        # An interrupted process took the seconds that it had used with it.
        "wall_seconds": None if was_begun else round(time.perf_counter() - wall, 2),
        "cpu_seconds": None if was_begun else round(time.process_time() - cpu, 2),
    }


def _ask(policy: CausalLMPolicy, env: EnvConfig, codec: TokenCodec, questions_per_kind: int) -> Evaluation:
    """Greedy answers to held-out questions: the same ones for every run."""
    envs, index = held_out(env, codec, make_envs, questions_per_kind)
    return evaluate(policy.model, envs, index)


def _plain(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {
        kind: {metric: {k: round(v, 4) for k, v in by_metric[metric].items()} for metric in METRICS}
        for kind, by_metric in to_plain(evaluation.estimates).items()
    }


def _write_transcripts(
    folder: Path, update: int, policy: CausalLMPolicy, config: TrainConfig, codec: TokenCodec, asked: Asked
) -> None:
    """Keep greedy answers to a few held-out questions, labelled with the number of finished updates."""
    evaluation = _ask(policy, config.env, codec, asked.transcripts_per_kind)
    with_values = policy if isinstance(policy, CausalLMWithValueHead) else None
    rows = describe(evaluation.rollouts, codec, label=f"update {update}", policy=with_values)
    write_text(_part(folder, update), "".join(json.dumps(row) + "\n" for row in rows))


def _part(folder: Path, update: int) -> Path:
    return folder / f"transcripts-{update}.jsonl"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process works in ``folder``, and keep others waiting."""
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


if __name__ == "__main__":
    main()
