"""Whole updates of TRL's ``GRPOTrainer``, each made when it is asked for: a worker of `benchmarks.peer_training`.

The episodes are those of `SearchVectorEnv`, played through ``rollout_func``. Every turn is sampled as TRL samples the
turns of its own tool calls: its generation (``model.generate`` with a cache of keys and values) continues the whole
context of all open episodes, in one batch padded on the left. Every tag of the tiny model's vocabulary is one token,
so closing tags are declared as further EOS ids, the cheapest way of ending a turn that transformers has.

The tiny model mixes its vocabulary with copies from the context, so it has to compute log-probabilities by itself; TRL
would compute them from its last hidden state. `add_own_head` is all that is changed of TRL.
"""

from __future__ import annotations

import functools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]
from trl.trainer.utils import FusedCausalLMOutput  # pyright: ignore[reportMissingImports]

from agents.models import load_model
from agents.tasks import EnvConfig, QuestionOrder, make_envs
from benchmarks.paced_collect import Clock, Pace, facts, options
from search_gym import SearchVectorEnv, WordCodec
from search_gym.codec import TokenCodec
from search_gym.errors import OptionError
from search_gym.tags import closes_turn


class Played(NamedTuple):
    """One finished episode: its ids, which of those after the prompt the policy sampled, and what came of it."""

    token_ids: list[int]
    num_prompt_ids: int
    env_mask: list[int]
    reward: float
    num_searches: int


class Episodes:
    """A ``rollout_func`` of TRL: one episode for each prompt, which is the text of a question.

    As many episodes are played at a time as there are slots in ``envs``. ``last`` holds the seconds, and the means of
    sampled tokens, all tokens and searches, of the latest round.
    """

    def __init__(self, envs: SearchVectorEnv) -> None:
        """Raises OptionError: two questions with the same text."""
        self.envs = envs
        self._index = {question.text: i for i, question in enumerate(envs.task.questions)}
        if len(self._index) != len(envs.task.questions):
            raise OptionError("expected questions that differ in their texts; do: take TinyWiki's")
        self.last: dict[str, float] = {}

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, list[Any] | None]:
        """Raises RuntimeError: the environment did not end a turn where generation did."""
        clock, size = Clock(), self.envs.num_envs
        played = [
            episode
            for start in range(0, len(prompts), size)
            for episode in self._play(prompts[start : start + size], trainer)
        ]
        self.last = {
            **{f"rollout_{name}": seconds for name, seconds in clock.read().items()},
            "sampled_tokens": statistics.mean(sum(episode.env_mask) for episode in played),
            "all_tokens": statistics.mean(len(episode.token_ids) for episode in played),
            "searches": statistics.mean(episode.num_searches for episode in played),
        }
        return {
            "prompt_ids": [episode.token_ids[: episode.num_prompt_ids] for episode in played],
            "completion_ids": [episode.token_ids[episode.num_prompt_ids :] for episode in played],
            "logprobs": None,  # TRL's own generation with transformers has none either
            "env_mask": [episode.env_mask for episode in played],
            "episode_reward": [episode.reward for episode in played],
        }

    def _play(self, texts: Sequence[str], trainer: Any) -> list[Played]:
        """One episode in each slot."""
        envs = self.envs
        observations, _ = envs.reset(options={"question_index": np.array([self._index[text] for text in texts])})
        contexts = [observation.tolist() for observation in observations]
        num_prompt_ids = [len(context) for context in contexts]
        masks: list[list[int]] = [[] for _ in texts]
        rewards, searches = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        active = list(range(len(texts)))
        while active:
            turns, _ = trainer._generate_single_turn([contexts[slot] for slot in active], None, {}, num_generations=1)
            actions = [np.zeros(0, dtype=np.int64)] * len(texts)
            episodes = envs.episodes
            for slot, turn in zip(active, turns, strict=True):
                actions[slot] = np.array(turn[: episodes[slot].turn_tokens_left], dtype=np.int64)
            observations, step_rewards, terminated, truncated, infos = envs.step(actions)
            for slot in active:
                action, observation = actions[slot].tolist(), observations[slot].tolist()
                if infos["num_consumed"][slot] != len(action) or infos["event"][slot] == "open":
                    raise RuntimeError(f"expected a turn that ends with its last token, got {action}")
                contexts[slot] += action + observation
                masks[slot] += [1] * len(action) + [0] * len(observation)
                searches[slot] = infos["num_searches"][slot]
            rewards += step_rewards
            active = [slot for slot in active if not (terminated[slot] or truncated[slot])]
        columns = zip(contexts, num_prompt_ids, masks, rewards.tolist(), searches.tolist(), strict=True)
        return [Played(*column) for column in columns]


def episode_reward(episode_reward: Sequence[float], **_: Any) -> list[float | None]:
    """A reward function of TRL: what the environment gave."""
    return list(episode_reward)


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
            report = self._ready if self._clock is None else {**self._clock.read(), **self._episodes.last}
            self._pace.next(report)
            self._clock = Clock()


def add_own_head(model: Any, temperature: float) -> None:
    """Let ``model(..., labels=, fused_lm_head=True)``, which is how TRL scores tokens, use the model's own logits.

    As in TRL, entropies have no gradient here, and both are 0 where the label is -100.
    """
    forward = model.forward

    @functools.wraps(forward)  # generate looks at the arguments
    def scoring_forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **options: Any) -> Any:
        if not fused_lm_head:
            return forward(*args, **options) if labels is None else forward(*args, labels=labels, **options)
        is_scored = labels != -100
        first = int(is_scored.any(dim=0).nonzero()[0])
        logits = forward(*args, **options, use_cache=False, logits_to_keep=labels.shape[1] - first + 1).logits
        logprobs = (logits[:, :-1] / temperature).log_softmax(dim=-1)
        chosen = logprobs.gather(-1, labels[:, first:, None].clamp_min(0)).squeeze(-1)
        with torch.no_grad():
            entropies = -(logprobs.exp() * logprobs).sum(dim=-1)
        chosen, entropies = (
            torch.nn.functional.pad(x * is_scored[:, first:], (first - 1, 0)) for x in (chosen, entropies)
        )
        return FusedCausalLMOutput(log_probs=chosen, entropy=entropies, label_mask=is_scored[:, 1:])

    model.forward = scoring_forward


def make_tokenizer(codec: WordCodec) -> PreTrainedTokenizerFast:
    """The words of ``codec`` as the tokenizer that TRL wants, with which it decodes completions for its records."""
    vocabulary = {word: i for i, word in enumerate(codec.tokens)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=codec.tokens[codec.unk_id]))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=codec.tokens[codec.pad_id],
        eos_token=codec.tokens[codec.eos_id],
        unk_token=codec.tokens[codec.unk_id],
        padding_side="left",
    )


def closing_ids(codec: TokenCodec) -> list[int]:
    """The tokens that end a turn: EOS, and those whose text is a closing tag."""
    return [codec.eos_id, *(i for i in range(codec.vocab_size) if closes_turn(codec.decode([i])))]


def make_trainer(settings: Mapping[str, Any], pace: Pace | None = None) -> tuple[GRPOTrainer, Episodes]:
    """TRL's trainer with the sizes and the loss of `agents.grpo`, and the episodes that it plays.

    Raises:
        OptionError: the model is not a tiny one.
    """
    torch.set_num_threads(settings["threads"])
    model, codec = load_model(settings["model"])
    if not isinstance(codec, WordCodec):
        raise OptionError(f"expected a tiny model, whose tags are single tokens, got {settings['model']!r}")
    # TRL looks there for the code of a reference model whose class is not in transformers.
    setattr(type(model.config), "auto_map", {})  # noqa: B010
    model.generation_config.eos_token_id = closing_ids(codec)  # pyright: ignore[reportOptionalMemberAccess]
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
        processing_class=make_tokenizer(codec),
        rollout_func=episodes,
        callbacks=[] if pace is None else [Paced(pace, episodes, ready)],
    )
    for scored in (trainer.model, trainer.ref_model):
        if scored is not None:
            add_own_head(scored, arguments.temperature)
    return trainer, episodes


if __name__ == "__main__":
    pace = Pace()
    trainer, _ = make_trainer(json.loads(sys.argv[1]), pace)
    trainer.train()
