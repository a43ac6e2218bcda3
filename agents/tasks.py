"""The environment options that every trainer and the evaluation share, and how they become environments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from search_gym import FormatReward, Question, SearchVectorEnv, TokenCodec, exact_match
from search_gym.errors import OptionError
from search_gym.rewards import RewardFn


@dataclass(frozen=True)
class EnvConfig:
    """Which questions are asked, over which documents, and within which limits."""

    questions: str = "tinywiki"
    """Question set: "tinywiki", "hotpotqa:FOLDER" (see docs/data.md), "jsonl:PATH", or "package.module:attribute"."""
    corpus: Path | None = None
    """JSON-lines file of passages, for question sets that bring none."""
    split: str = "train"
    """Split to train on."""
    kinds: tuple[str, ...] = ("1-hop", "2-hop", "2-hop", "2-hop")
    """TinyWiki: kinds of questions; a kind that is named twice comes twice as often."""
    retriever: str = "bm25"
    """Retriever: a name such as "bm25", a description such as "http(url=...)", or "package.module:attribute"."""
    top_k: int = 1
    """Documents per search."""
    max_turns: int = 4
    """Turns before the last one, in which only an answer counts."""
    max_turn_tokens: int = 24
    """Tokens that the policy may sample in a turn."""
    max_observation_tokens: int = 96
    """Tokens that one search may append."""
    max_context_tokens: int = 640
    """Tokens of the prompt, all turns and all observations together."""
    reward: Literal["em", "format"] = "em"
    """Exact match, or exact match with Search-R1's format terms."""
    close_think: bool = True
    """Whether an observation closes a <think> in which the search was written; Search-R1 leaves it open."""
    on_retrieval_error: Literal["raise", "observe"] = "raise"
    """What a failing search does: end the run, or tell the policy."""
    retrieval_timeout: float | None = None
    """Seconds after which a search has failed; by default it is waited for."""


REAL_TEXT = EnvConfig(
    questions="jsonl:questions.jsonl",
    split="all",
    top_k=3,
    max_turn_tokens=500,
    max_observation_tokens=500,
    max_context_tokens=4096,
)
"""Search-R1's limits, for real questions and passages."""


def env_options(config: EnvConfig, codec: TokenCodec, *, split: str | None = None) -> dict[str, Any]:
    """Keyword arguments of ``search_gym/SearchQA-v0`` for ``config``."""
    is_tiny = config.questions == "tinywiki"
    rewards: dict[str, RewardFn] = {"em": exact_match, "format": FormatReward()}
    return {
        "questions": config.questions,
        "corpus": config.corpus,
        "split": split or config.split,
        "question_options": {"kinds": kind_weights(config.kinds)} if is_tiny else None,
        "retriever": config.retriever,
        "codec": codec,
        "prompt_fn": "tinywiki" if is_tiny else "search_r1",
        "reward_fn": rewards[config.reward],
        "top_k": config.top_k,
        "max_turns": config.max_turns,
        "max_turn_tokens": config.max_turn_tokens,
        "max_observation_tokens": config.max_observation_tokens,
        "max_context_tokens": config.max_context_tokens,
        "close_think": config.close_think,
        "on_retrieval_error": config.on_retrieval_error,
        "retrieval_timeout": config.retrieval_timeout,
    }


def make_envs(config: EnvConfig, codec: TokenCodec, num_envs: int, **overrides: Any) -> SearchVectorEnv:
    """``num_envs`` slots of the task; ``overrides`` replace keyword arguments of ``search_gym/SearchQA-v0``."""
    options = {**env_options(config, codec), **overrides}
    envs = gym.make_vec("search_gym/SearchQA-v0", num_envs=num_envs, **options)
    assert isinstance(envs, SearchVectorEnv)
    return envs


MakeEnvs = Callable[[EnvConfig, TokenCodec, int], SearchVectorEnv]
"""What turns the options of a task into so many slots, as `make_envs` does."""


def reuse(envs: SearchVectorEnv) -> dict[str, Any]:
    """Overrides for `make_envs` that take over the questions and the retriever of ``envs`` instead of building them."""
    task = envs.task
    return {"questions": task.questions, "retriever": task.retriever, "corpus": None, "question_options": None}


def kind_weights(kinds: Sequence[str]) -> Mapping[str, float]:
    """How often each kind is named."""
    return {kind: float(kinds.count(kind)) for kind in dict.fromkeys(kinds)}


@dataclass
class QuestionOrder:
    """An endless seeded order over ``num_questions``: shuffled epochs, each question once an epoch.

    ``taken``, how many have been taken so far, is all its state.
    """

    num_questions: int
    seed: int
    taken: int = 0

    def __post_init__(self) -> None:
        """Raises OptionError without questions."""
        if self.num_questions < 1:
            raise OptionError(f"expected at least one question, got {self.num_questions}")

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices."""
        first, last = self.taken // self.num_questions, (self.taken + count) // self.num_questions
        epochs = [self._epoch(number) for number in range(first, last + 1)]
        start = self.taken - first * self.num_questions
        self.taken += count
        return np.concatenate(epochs)[start : start + count].tolist()

    def _epoch(self, number: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self.seed, number]).permutation(self.num_questions)


def question_kind(question: Question) -> str:
    """The kind that a question says it is, "all" when it does not."""
    return str(question.metadata.get("kind") or question.metadata.get("type") or "all")
