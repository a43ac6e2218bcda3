"""Whole updates of TRL's ``GRPOTrainer``, each made when it is asked for: a worker of `benchmarks.paced_workers`.

The episodes are those of `SearchVectorEnv`, played through the ``rollout_func`` of `search_gym.adapters.trl`. Every
turn is sampled as TRL samples the turns of its own tool calls: its generation (``model.generate`` with a cache of keys
and values) continues the whole context of all open episodes, in one batch padded on the left. Every tag of the tiny
model's vocabulary is one token, so closing tags are declared as further EOS ids, the cheapest way of ending a turn that
transformers has. (The adapter's own generation gives log-probabilities too, which this loss has no use for.)

The tiny model mixes its vocabulary with copies from the context, so it has to compute log-probabilities by itself; TRL
would compute them from its last hidden state. `agents.tiny_trl.add_own_head` is all that is changed of TRL.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

from agents.tasks import EnvConfig, QuestionOrder, make_envs
from agents.tiny_trl import add_own_head, load_tiny
from benchmarks.paced_collect import Clock, Pace, facts, options
from search_gym import SearchVectorEnv
from search_gym.adapters.trl import RolloutFunc, Sampled, episode_reward


class Episodes(RolloutFunc):
    """The adapter's ``rollout_func`` with TRL's own generation.

    ``last`` holds the seconds, and the means of exact match, sampled tokens, all tokens and searches, of the latest
    round.
    """

    def __init__(self, envs: SearchVectorEnv) -> None:
        """Raises OptionError: two questions with the same text."""
        super().__init__(envs, generate_as_trl)
        self.last: dict[str, float] = {}

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """See `RolloutFunc`."""
        clock = Clock()
        found: dict[str, Any] = super().__call__(prompts, trainer)
        lengths = [len(x) + len(y) for x, y in zip(found["prompt_ids"], found["completion_ids"], strict=True)]
        self.last = {
            **{f"rollout_{name}": seconds for name, seconds in clock.read().items()},
            "em": statistics.mean(found["episode_reward"]),
            "sampled_tokens": statistics.mean(map(sum, found["env_mask"])),
            "all_tokens": statistics.mean(lengths),
            "searches": statistics.mean(found["num_searches"]),
        }
        return found


def generate_as_trl(contexts: Sequence[list[int]], room: Sequence[int], trainer: Any) -> list[Sampled]:
    """A turn after each context, sampled as TRL samples the turns of its own tool calls; no log-probabilities there."""
    turns, _ = trainer._generate_single_turn(list(contexts), None, {}, num_generations=1)
    return [Sampled(turn[:most], None) for turn, most in zip(turns, room, strict=True)]


class Paced(TrainerCallback):
    """Lets every round of rollouts, with the optimiser's steps on it, wait to be asked for."""

    def __init__(self, pace: Pace, episodes: Episodes, ready: Mapping[str, Any]) -> None:
        self._pace, self._episodes, self._ready = pace, episodes, dict(ready)
        self._clock: Clock | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Between two rounds, report on the first."""
        if state.global_step % args.steps_per_generation == 0:  # pyright: ignore[reportAttributeAccessIssue]
            self._pace.next(self._ready if self._clock is None else self._report(self._clock))
            self._clock = Clock()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report on the last round."""
        if self._clock is not None:
            self._pace.next(self._report(self._clock))

    def _report(self, clock: Clock) -> dict[str, Any]:
        return {**clock.read(), **self._episodes.last}


def make_trainer(settings: Mapping[str, Any], pace: Pace | None = None) -> tuple[GRPOTrainer, Episodes]:
    """TRL's trainer with the sizes and the loss of `agents.grpo`, and the episodes that it plays.

    Raises:
        OptionError: the model is not a tiny one.
    """
    torch.set_num_threads(settings["threads"])
    model, tokenizer = load_tiny(settings["model"])
    codec = tokenizer.codec
    env: EnvConfig = options(EnvConfig, settings["env"])
    episodes = Episodes(make_envs(env, codec, settings["at_a_time"]))
    questions = episodes.envs.task.questions
    order = QuestionOrder(len(questions), settings["seed"])
    drawn = order.take(settings["updates"] * settings["episodes"] // settings["group_size"])
    steps = settings["episodes"] // settings["minibatch_size"]
    arguments = GRPOConfig(
        output_dir=settings["run_dir"],
        # One round: as many episodes, in as many optimiser steps.
        num_generations=settings["group_size"],
        per_device_train_batch_size=settings["minibatch_size"],
        steps_per_generation=steps,
        gradient_accumulation_steps=1,
        num_iterations=1,
        max_steps=settings["updates"] * steps,
        shuffle_dataset=False,
        # The same sampling and limits.
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_completion_length=env.max_context_tokens,
        generation_kwargs={"max_new_tokens": env.max_turn_tokens},
        # The same loss: token means of a mini-batch, rewards in standard deviations of their group, k3 for the KL.
        loss_type="bnpo",
        scale_rewards="group",
        epsilon=0.2,
        beta=settings["kl_coef"],
        # The same optimiser.
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_epsilon=1e-5,
        max_grad_norm=1.0,
        # Nothing that costs time and that the other side does not do.
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_steps=steps,
        disable_tqdm=True,
        seed=settings["seed"],
    )
    versions = {name: version(name) for name in ("trl", "transformers", "torch")}
    ready = {**facts(questions, codec), "versions": versions}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [questions[i].text for i in drawn]}),
        processing_class=tokenizer,
        rollout_func=episodes,
        callbacks=[] if pace is None else [Paced(pace, episodes, ready)],
    )
    add_own_head(trainer)
    return trainer, episodes


if __name__ == "__main__":
    pace, settings = Pace(), json.loads(sys.argv[1])
    trainer, _ = make_trainer(settings, pace)
    trainer.train()
    folder = Path(settings["run_dir"]) / "checkpoint"
    trainer.save_model(str(folder))
    pace.next({"checkpoint": str(folder)})
