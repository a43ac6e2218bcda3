"""Settings that several algorithms share, as keyword arguments of their configurations.

* ``LONG`` adds 3-hop questions and takes longer.
* ``MATCHED`` leaves two algorithms nothing to differ in but what they are: the same draws of questions and rollouts for
  each, sampled from the same distribution, as many optimiser updates, the same KL term, one learning rate for both.
  ``python -m benchmarks.learning_rates`` searches that rate for each of them over the same grid.
* `search_r1` is what the reference trains with, on real text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from agents.config import ComputeConfig, OptimizerConfig
from agents.tasks import REAL_TEXT, EnvConfig

LONG: dict[str, Any] = {
    "env": EnvConfig(kinds=("1-hop", "2-hop", "2-hop", "2-hop", "3-hop", "3-hop")),
    "updates": 400,
    "preset": "long",
}

MATCHED: dict[str, Any] = {
    "group_size": 4,
    "rollouts_per_update": 128,
    "minibatch_size": 32,
    "epochs": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "kl": "k3-loss",
    "kl_coef": 0.005,
    "optimizer": OptimizerConfig(learning_rate=1e-3),
    "preset": "matched",
}


def search_r1(
    *, rollouts_per_prompt: int, learning_rate: float, kl: Literal["k1-reward", "k3-loss"], top_p: float
) -> dict[str, Any]:
    """What Search-R1 trains with (Jin et al. 2025, arXiv 2503.09516, and its scripts), for a model of 3 B parameters.

    512 questions a round and mini-batches of 256 rollouts: 2 optimiser updates a round for PPO, which takes one rollout
    of each, and 10 for GRPO, which takes five. ``questions`` and ``corpus`` must be given.
    """
    updates = 500
    return {
        "model": "Qwen/Qwen2.5-3B",
        "env": replace(REAL_TEXT, close_think=False),
        "optimizer": OptimizerConfig(
            learning_rate=learning_rate,
            value_learning_rate=1e-5,
            warmup_updates=int(0.285 * updates),
            value_warmup_updates=int(0.015 * updates),
            final_fraction=1.0,
            weight_decay=0.01,
            epsilon=1e-8,
        ),
        "compute": ComputeConfig(precision="bf16", gradient_checkpointing=True, micro_batch_size=8, num_envs=256),
        "updates": updates,
        "rollouts_per_update": 512 * rollouts_per_prompt,
        "group_size": rollouts_per_prompt,
        "minibatch_size": 256,
        "epochs": 1,
        "temperature": 1.0,
        "top_p": top_p,
        "kl": kl,
        "kl_coef": 0.001,
        "entropy_coef": 0.001,
        "preset": "search_r1",
    }
