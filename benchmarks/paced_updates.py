"""Whole updates of `agents.grpo`, each made when it is asked for: a worker of `benchmarks.paced_workers`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents import grpo
from agents.config import ComputeConfig, OptimizerConfig, SaveConfig
from agents.health import Alarm
from agents.runlog import RunLog
from agents.tasks import EnvConfig, make_envs
from benchmarks.paced_collect import Clock, Pace, facts, options
from search_gym import SearchVectorEnv
from search_gym.codec import TokenCodec


class PacedLog(RunLog):
    """The log of a run, in which every update waits to be asked for."""

    def __init__(self, pace: Pace, run_dir: Path, total: int) -> None:
        super().__init__(run_dir, {}, total=total, title="GRPO")
        self._pace = pace
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> PacedLog:
        super().__enter__()
        self._pace.next(self.facts)
        self._clock = Clock()
        return self

    def write(self, metrics: Mapping[str, float], alarms: Sequence[Alarm] = ()) -> None:
        """Log an update as always, then report what it took."""
        super().write(metrics, alarms)
        self._pace.next(
            {
                **self._clock.read(),
                "rollout_wall": metrics["time/rollout_seconds"],
                **{name: metrics[f"rollout/{name}"] for name in ("em", "sampled_tokens", "searches")},
                "logprob_mismatch_max": metrics["loss/logprob_mismatch_max"],
            }
        )
        self._clock = Clock()


def work(pace: Pace, settings: dict[str, Any]) -> None:
    """Train with the settings, until nobody asks for more or all updates are made; then tell where the policy is."""
    log = PacedLog(pace, Path(settings["run_dir"]), settings["updates"])

    def make(env: EnvConfig, codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
        envs = make_envs(env, codec, num_envs)
        log.facts = facts(envs.task.questions, codec)
        return envs

    config = grpo.GRPOConfig(
        model=settings["model"],
        env=options(EnvConfig, settings["env"]),
        rollouts_per_update=settings["episodes"],
        group_size=settings["group_size"],
        minibatch_size=settings["minibatch_size"],
        kl_coef=settings["kl_coef"],
        updates=settings["updates"],
        seed=settings["seed"],
        optimizer=OptimizerConfig(learning_rate=settings["learning_rate"], warmup_updates=0, final_fraction=1.0),
        compute=ComputeConfig(device="cpu", threads=settings["threads"]),
        save=SaveConfig(save_every=settings["updates"] + 1, transcripts=0),
        run_dir=Path(settings["run_dir"]),
    )
    grpo.train(config, make_envs=make, log=log)
    pace.next({"checkpoint": str(config.run_dir / "checkpoint")})


if __name__ == "__main__":
    work(Pace(), json.loads(sys.argv[1]))
