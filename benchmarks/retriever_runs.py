"""One run of `benchmarks.retrievers_in_env`: train with a retriever, evaluate with it and with BM25, keep what came."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from agents.checkpoint import load_policy
from agents.demo import em_by_kind, held_out, scripted_estimates
from agents.evaluate import evaluate
from agents.health import COLLAPSES
from agents.ppo import PPOConfig, train
from agents.rollout import Rollout
from agents.runlog import write_json
from agents.tasks import EnvConfig, make_envs
from agents.transcripts import score
from search_gym import SearchVectorEnv, TokenCodec, retrievers
from search_gym.errors import OptionError

COMMON = "bm25"
"""The retriever that every policy is also evaluated with."""
RESULT = "result.json"
CURVES = ("em", "em/1-hop", "em/2-hop", "searches")


@dataclass(frozen=True)
class Cell:
    """One training run: ``name`` as the table shows it, ``retriever`` as the environments load it, by split."""

    name: str
    retriever: Mapping[str, str]
    config: PPOConfig


def run_cell(cell: Cell, questions_per_kind: int) -> dict[str, Any]:
    """Train and evaluate; a result that is already in the run folder, of the same options, is returned as it is.

    ``scores`` holds for each evaluation ("own", "common") and metric a number per held-out question, in the order of
    ``kinds``.

    Raises:
        OptionError: the folder holds a result of other options.
    """
    config, env = cell.config, cell.config.env
    folder = config.run_dir
    options = {
        "retriever": cell.name,
        "top_k": env.top_k,
        "seed": config.seed,
        "updates": config.updates,
        "questions_per_kind": questions_per_kind,
    }
    result_file = folder / RESULT
    if result_file.exists():
        result = json.loads(result_file.read_text(encoding="utf-8"))
        found = {name: result[name] for name in options}
        if found != options:
            raise OptionError(
                f"expected a result of the options {options} in {folder}, got one of {found}; "
                "do: choose another --work-dir, or delete the folder"
            )
        return result
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.compute.threads)
    disable_progress_bar()
    was_begun = (folder / "metrics.jsonl").exists()
    with (folder / "log.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):
        cpu = time.process_time()
        policy = train(config, make_envs=open_envs)
        cpu = time.process_time() - cpu
        codec = load_policy(config.model)[1]
        scores, scripted, kinds = {}, {}, []
        for where, retriever in (("own", cell.retriever["test"]), ("common", COMMON)):
            envs, index = held_out(replace(env, retriever=retriever), codec, open_envs, questions_per_kind)
            evaluation = evaluate(policy.model, envs, index, seed=config.seed)
            kinds = [rollout.question.metadata["kind"] for rollout in evaluation.rollouts]
            scores[where] = columns(evaluation.rollouts)
            if where == "own":
                scripted = {
                    name: em_by_kind(estimates, lambda em: round(em.mean, 4))
                    for name, estimates in scripted_estimates(envs, index, config).items()
                }
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    alarms = [{"update": row["update"], "name": alarm["name"]} for row in metrics for alarm in row.get("alarms", ())]
    result = {
        **options,
        "kinds": kinds,
        "scores": scores,
        "scripted": scripted,
        "curves": {key: [round(row[f"rollout/{key}"], 4) for row in metrics] for key in CURVES},
        "rollouts_per_update": config.rollouts_per_update,
        "alarms": alarms,
        "collapsed": any(alarm["name"] in COLLAPSES for alarm in alarms),
        "train_seconds": round(metrics[-1]["time/seconds"], 1),
        # An interrupted process took the seconds that it had used with it.
        "train_cpu_seconds": None if was_begun else round(cpu, 1),
    }
    write_json(result_file, result)
    return result


def columns(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    """For each metric a number per episode; ``observation_tokens`` counts what the searches of one appended."""
    rows = [
        {
            **score(rollout),
            "observation_tokens": float(sum(s.stop - s.start for s in rollout.spans if s.kind == "observation")),
        }
        for rollout in rollouts
    ]
    metrics = ("em", "searches", "sampled_tokens", "observation_tokens")
    return {metric: [row[metric] for row in rows] for metric in metrics}


def open_envs(config: EnvConfig, codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
    """`make_envs`, where a retriever may have an index with documents of its own."""
    if "index=" not in config.retriever:
        return make_envs(config, codec, num_envs)
    return make_envs(config, codec, num_envs, retriever=retrievers.load(config.retriever))
