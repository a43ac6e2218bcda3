"""A base model that has learned the form and nothing else: what "instruct-like" means where there are no instructions.

It is fine-tuned on episodes that the base model itself has sampled, of which only those are kept whose form is right
and whose answer is wrong. So it has seen how an episode is written, and not one that solves its question.
"""

from __future__ import annotations

from pathlib import Path

import torch

from agents.checkpoint import load_policy, save_policy
from agents.generation import CachedGenerator
from agents.rollout import collect
from agents.supervised import FitConfig, example_of, fit
from agents.tasks import EnvConfig, make_envs
from agents.transcripts import transcript_of
from search_gym.rewards import em_score, has_valid_structure

NUM_SAMPLED = 2_000
NUM_ENVS = 200
SEED = 0
FIT = FitConfig(learning_rate=1e-3, epochs=2)


def make(folder: Path, *, num_sampled: int = NUM_SAMPLED) -> int:
    """Write the model to ``folder`` unless it is there, and return how many episodes it was shown (0: none, it was).

    The same call gives the same weights, bit by bit, on one machine.
    """
    if (folder / "config.json").is_file():
        return 0
    torch.set_num_threads(1)
    policy, codec = load_policy("tiny")
    envs = make_envs(
        EnvConfig(), codec, min(NUM_ENVS, num_sampled), reward_fn=lambda outcome: float(has_valid_structure(outcome))
    )
    rollouts = collect(envs, CachedGenerator(policy.model, codec), range(num_sampled), SEED)
    shown = [
        example_of(transcript_of(rollout))
        for rollout in rollouts
        if rollout.reward == 1.0 and em_score(rollout.answer, rollout.question.answers) == 0.0
    ]
    fit(policy, shown, FIT, pad_id=codec.pad_id, seed=SEED)
    save_policy(folder, policy, codec)
    return len(shown)
