"""Rejection sampling: try, keep what was right, learn from it by maximum likelihood.

Every training question is answered several times, with search, by sampling; episodes that answer it right are what the
policy is then fine-tuned on (rejection sampling fine-tuning, Yuan et al. 2023, arXiv 2308.01825; the baseline of
Search-R1, Jin et al. 2025, arXiv 2503.09516). One round is that baseline. With ``--rounds`` the improved policy samples
again, which is expert iteration (Anthony et al. 2017, arXiv 1705.08439; ReST-EM, Singh et al. 2023, arXiv 2312.06585,
which differs in that each of its rounds starts from the base model).

    python -m agents.baselines.rejection_sampling --rounds 8
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tyro
from transformers.utils.logging import disable_progress_bar

from agents.checkpoint import load_policy, save_policy
from agents.generation import CachedGenerator
from agents.models import choose_device
from agents.policy import CausalLMWithValueHead
from agents.rollout import Rollout, collect
from agents.runlog import RunLog
from agents.supervised import Example, FitConfig, fit
from agents.tasks import EnvConfig, MakeEnvs, QuestionOrder, make_envs
from search_gym.errors import OptionError, SearchGymError
from search_gym.rewards import em_score


@dataclass(frozen=True)
class RejectionSamplingConfig:
    """Rounds of sampling, each followed by fine-tuning on what was right."""

    env: EnvConfig = field(default_factory=EnvConfig)
    fit: FitConfig = field(default_factory=lambda: FitConfig(learning_rate=1e-3, epochs=2))
    run_dir: Path = Path("runs/rejection-sampling")
    """Where config.json, metrics.jsonl and the checkpoint go."""
    model: str = "tiny"
    """Policy to start from: "tiny", a Hugging Face directory or hub name, or a GGUF file."""
    seed: int = 1
    """Decides the order of questions, every sampled token and the order of examples."""
    rounds: int = 1
    """How often the current policy samples and is then fine-tuned; more than one is expert iteration."""
    questions_per_round: int = 1024
    """Questions that are asked in a round."""
    samples_per_question: int = 5
    """Episodes for each of them; Search-R1's baseline takes 5."""
    num_envs: int = 128
    """Episodes that are sampled at the same time."""
    valid_only: bool = True
    """Keep a right episode only if every turn of it searched or answered."""
    temperature: float = 1.0
    """Sampling temperature."""
    threads: int = 1
    """Torch's CPU threads; for the tiny model one is as fast as two."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""

    def __post_init__(self) -> None:
        """Raises OptionError when nothing would be sampled."""
        for name in ("rounds", "questions_per_round", "samples_per_question", "num_envs"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected {name} >= 1, got {getattr(self, name)}; do: raise it")


def train(
    config: RejectionSamplingConfig, *, make_envs: MakeEnvs = make_envs, log: RunLog | None = None
) -> CausalLMWithValueHead:
    """Sample and fine-tune ``config.rounds`` times, write the policy's checkpoint, and return the policy.

    Raises:
        OptionError: a round in which no episode was right, so that there is nothing to learn from.
    """
    torch.set_num_threads(config.threads)
    policy, codec = load_policy(config.model)
    policy.to(choose_device(config.device)).eval()
    episodes = config.questions_per_round * config.samples_per_question
    envs = make_envs(config.env, codec, min(config.num_envs, episodes))
    generator = CachedGenerator(policy.model, codec, temperature=config.temperature)
    order = QuestionOrder(len(envs.task.questions), config.seed)
    log = log or RunLog(config.run_dir, config, total=config.rounds, title="Rejection sampling")
    with log:
        for number in range(1, config.rounds + 1):
            started = log.seconds
            index = np.repeat(order.take(config.questions_per_round), config.samples_per_question)
            # Waves take consecutive seeds, so rounds are kept further apart than they have waves.
            rollouts = collect(envs, generator, index, seed=config.seed * 10_000_000 + number * 100_000)
            collected = log.seconds
            kept = accept(rollouts, valid_only=config.valid_only)
            if not kept:
                raise OptionError(
                    f"expected some of {len(rollouts)} episodes of round {number} to be right, got none; do: raise "
                    "questions_per_round or samples_per_question, or start from a policy that is sometimes right"
                )
            losses: list[Mapping[str, float]] = []
            fit(
                policy,
                [Example(rollout.token_ids, rollout.loss_mask) for rollout in kept],
                config.fit,
                pad_id=codec.pad_id,
                seed=config.seed * 10_000 + number,
                on_step=losses.append,
            )
            log.write(
                {
                    "update": number,
                    "rollout/em": float(np.mean([is_right(rollout) for rollout in rollouts])),
                    "rollout/searches": float(np.mean([rollout.num_searches for rollout in rollouts])),
                    "rollout/valid_turns": float(
                        np.mean([turn.event != "invalid" for rollout in rollouts for turn in rollout.turns])
                    ),
                    "rollout/kept": float(len(kept)),
                    "rollout/questions_solved": len({r.question_index for r in kept}) / len(set(index.tolist())),
                    **{name: float(np.mean([step[name] for step in losses])) for name in losses[0]},
                    "time/rollout_seconds": collected - started,
                    "time/update_seconds": log.seconds - collected,
                    "time/tokens_per_second": sum(int(r.loss_mask.sum()) for r in rollouts) / (log.seconds - started),
                }
            )
    save_policy(config.run_dir / "checkpoint", policy, codec)
    return policy


def is_right(rollout: Rollout) -> bool:
    """Whether the answer matches exactly."""
    return em_score(rollout.answer, rollout.question.answers) == 1.0


def accept(rollouts: Sequence[Rollout], *, valid_only: bool) -> list[Rollout]:
    """The right episodes, each sequence of tokens once; with ``valid_only`` none in which a turn was invalid."""
    kept: dict[tuple[int, bytes], Rollout] = {}
    for rollout in rollouts:
        is_valid = all(turn.event != "invalid" for turn in rollout.turns)
        if is_right(rollout) and (is_valid or not valid_only):
            kept.setdefault((rollout.question_index, rollout.token_ids.tobytes()), rollout)
    return list(kept.values())


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    disable_progress_bar()
    prog = "python -m agents.baselines.rejection_sampling"
    config = tyro.cli(RejectionSamplingConfig, args=args, prog=prog, description=__doc__)
    try:
        train(config)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    print(f"The policy is in {config.run_dir / 'checkpoint'}; evaluate it with python -m agents.evaluate --model that.")


if __name__ == "__main__":
    main()
