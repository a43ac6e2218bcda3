"""The agent that never searches: it can only answer, from what it has learned or by guessing.

Trained by PPO it is the baseline that the paper calls R1: reinforcement learning of reasoning without search, as in
DeepSeek-R1 (2025, arXiv 2501.12948).

``python -m agents.baselines.no_search`` takes the options of ``agents.ppo``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agents import ppo
from agents.config import run_command
from agents.tasks import EnvConfig, make_envs
from search_gym import SearchVectorEnv, TokenCodec


def no_search_envs(config: EnvConfig, codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
    """Slots in which the first turn is the last one, so that only an answer counts."""
    return make_envs(config, codec, num_envs, max_turns=0)


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(
        partial(ppo.train, make_envs=no_search_envs),
        {name: replace(preset, run_dir=Path("runs/no-search")) for name, preset in ppo.PRESETS.items()},
        prog="python -m agents.baselines.no_search",
        doc=__doc__,
        args=args,
    )


if __name__ == "__main__":
    main()
