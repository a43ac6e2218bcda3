"""Trains with weights that are spread over processes, looks at them, and stops early.

A program of its own, because it is started by a launcher: ``sharded_run.py ALGORITHM UPDATE OPTIONS...`` ends all
processes when ``UPDATE`` updates are done.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.distributed.fsdp import FSDPModule

from agents import algorithms
from agents.rollout import Rollout
from agents.trainer import Trainer


def check_shards(run: Trainer) -> None:
    """Every weight is spread, layer by layer, and only the policy that samples is whole."""
    assert run.is_sharded
    modules = [module for module in run.trained.modules() if isinstance(module, FSDPModule)]
    assert len(modules) == len(run.policy.model.blocks) + 1
    for weight, part in zip(run.policy.parameters(), run.trained.parameters(), strict=True):
        sharded: Any = part
        assert weight.shape == part.shape
        assert sharded.to_local().numel() <= -(-len(weight) // 2) * weight[0].numel()
        assert sharded.full_tensor().equal(weight)
    for state in run.optimizer.state.values():
        assert state["exp_avg"].to_local().numel() <= -(-len(state["exp_avg"]) // 2) * state["exp_avg"][0].numel()


def main(name: str, stop: int, options: list[str]) -> None:
    collect = Trainer.collect

    def checked(run: Trainer) -> list[Rollout]:
        check_shards(run)
        if run.update == stop:
            sys.exit()
        return collect(run)

    Trainer.collect = checked
    algorithms.load(name).main(options)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
