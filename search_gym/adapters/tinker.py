"""Tinker cookbook [0.6]: the environment as an ``Env`` of token chunks, one to one.

    from search_gym.adapters.tinker import SearchDataset

    dataset = SearchDataset(
        batch_size=32,
        group_size=8,
        env_id="search_gym/SearchQA-v0",
        options={"questions": "nq", "codec": "Qwen/Qwen3-4B"},   # the codec is the tokenizer of the model that samples
    )
    builder = dataset.get_batch(0)[0]                            # makes a group of environments of one question

Observations are the whole context, actions are sampled ids, and nothing is ever encoded again: each observation begins
with the last one and the action after it, so the cookbook makes one training datum of an episode, with the mask of the
transcript. Sampling stops at ``</search>``, ``</answer>`` and EOS; an action that goes on after the end of its turn is
refused, because the cookbook would train on what was never part of the episode.
"""

# What is called tinker here is the library, not this file.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tinker import ModelInput
from tinker_cookbook.rl.types import (
    ActionExtra,
    Env,
    EnvGroupBuilder,
    InitialObservationOverflow,
    RLDataset,
    StepResult,
    StopReason,
)

from search_gym.adapters._play import TINY, Play, SharedTask
from search_gym.completion import TURN_ENDS
from search_gym.errors import ActionError, OptionError, PromptError

__all__ = ["SearchDataset", "SearchGroupBuilder", "SearchTokenEnv"]

_STOP_REASONS = {
    "answered": StopReason.COMPLETED,
    "out_of_turns": StopReason.MAX_TURNS,
    "out_of_context": StopReason.CONTEXT_OVERFLOW,
}


class SearchTokenEnv(Env):
    """One episode of question ``question_index``; single-use, as Tinker's are."""

    def __init__(self, shared: SharedTask, question_index: int) -> None:
        self.play = Play(shared)
        self._question_index = question_index
        codec = shared.task.codec
        self._stop = [*TURN_ENDS, *filter(None, [codec.decode([codec.eos_id])])]

    async def initial_observation(self) -> tuple[ModelInput, list[str]] | InitialObservationOverflow:
        """The prompt and the stop strings; an overflow if the question does not fit."""
        try:
            prompt = self.play.start(self._question_index)
        except PromptError as error:
            metrics = {f"stop/{StopReason.MAX_TOKENS}": 1.0}
            return InitialObservationOverflow(reward=0.0, metrics=metrics, logs={"error": str(error)})
        return ModelInput.from_ints(prompt.tolist()), list(self._stop)

    async def step(self, action: list[int], *, extra: ActionExtra | None = None) -> StepResult:
        """Take any chunk of sampled ids; one that leaves its turn open is gone on from.

        Raises:
            ActionError: ids beyond the end of the turn.
        """
        _, reward, terminated, truncated, info = await self.play.step_async(list(action))
        if info["num_consumed"] != len(action):
            raise ActionError(
                f"expected a chunk that ends with its turn, got {len(action)} ids of which {info['num_consumed']} "
                "belong to it; do: sample with the stop condition that the environment returns"
            )
        metrics: dict[str, float] = {}
        if info["event"] != "open":
            metrics[f"turn/{info['event']}"] = 1.0
        done = terminated or truncated
        if done:
            metrics |= {f"stop/{_STOP_REASONS[info['end_reason']]}": 1.0, "num_searches": float(info["num_searches"])}
        return StepResult(
            reward=reward,
            episode_done=done,
            next_observation=ModelInput.from_ints(self.play.episode.transcript.token_ids.tolist()),
            next_stop_condition=list(self._stop),
            metrics=metrics,
            logs={"event": info["event"], "content": info["content"]},
        )


@dataclass(frozen=True)
class SearchGroupBuilder(EnvGroupBuilder):
    """``group_size`` environments of one question of ``gym.make(env_id, **options)``; plain data, so it pickles."""

    question_index: int
    group_size: int
    env_id: str = TINY
    options: Mapping[str, Any] = field(default_factory=dict)

    async def make_envs(self) -> Sequence[Env]:
        """The environments; they share questions and retriever with all others of this process."""
        shared = SharedTask.of(self.env_id, self.options)
        return [SearchTokenEnv(shared, self.question_index) for _ in range(self.group_size)]

    def logging_tags(self) -> list[str]:
        """What logs are grouped by."""
        return ["search_gym"]


class SearchDataset(RLDataset):
    """``batch_size`` questions a batch, each once an epoch, in an order that ``seed`` draws; the rest is left out."""

    def __init__(
        self,
        batch_size: int,
        group_size: int,
        *,
        env_id: str = TINY,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Raises OptionError: more questions in a batch than there are, or a size below 1."""
        self._size, self._group_size = batch_size, group_size
        self._env_id, self._options = env_id, dict(options or {})
        num_questions = len(SharedTask.of(env_id, self._options).task.questions)
        if not 1 <= batch_size <= num_questions or group_size < 1:
            raise OptionError(
                f"expected batch_size in [1, {num_questions}] and group_size >= 1, got {batch_size} and {group_size}"
            )
        self._order = np.random.default_rng(seed).permutation(num_questions).tolist()

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """A group of each question of batch ``index``."""
        chosen = self._order[index * self._size : (index + 1) * self._size]
        return [SearchGroupBuilder(i, self._group_size, self._env_id, self._options) for i in chosen]

    def __len__(self) -> int:
        return len(self._order) // self._size
