"""Views of `SearchEnv` for libraries that cannot take chunks of token ids.

Each is an ordinary Gymnasium wrapper: the episode, its transcript, its masks and its reward stay the environment's own.
`MacroActions` is in a file of its own.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from search_gym.codec import TokenIds
from search_gym.episode import Episode
from search_gym.errors import ActionError
from search_gym.macro_actions import MacroActions
from search_gym.spaces import TokenSequence
from search_gym.tags import closes_turn
from search_gym.task import Task
from search_gym.transcript import Transcript

__all__ = ["AnyText", "FullContext", "MacroActions", "OneToken", "TextTurns"]

SearchLike = gym.Env[TokenIds, TokenIds]
"""A `SearchEnv`, or wrappers around one that change neither its actions nor its observations."""


class FullContext(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Observes the whole transcript (n,) int64 instead of what the environment has just appended.

    The last observation of an episode is its complete transcript.
    """

    def __init__(self, env: SearchLike) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        task: Task = env.get_wrapper_attr("task")
        self.observation_space = TokenSequence(task.codec.vocab_size, task.limits.max_context_tokens, min_length=1)

    def observation(self, observation: TokenIds) -> TokenIds:
        transcript: Transcript = self.env.get_wrapper_attr("transcript")
        return transcript.token_ids


class AnyText(gym.spaces.Space[str]):
    """Every string of at most ``max_length`` characters; samples are printable ASCII.

    Gymnasium's ``Text`` wants all of its characters listed, and Unicode has more than a million.
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        self.max_length = max_length
        super().__init__(shape=None, dtype=str, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """False: lengths differ."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A string of uniformly drawn length and characters.

        Raises:
            ValueError: a mask or probabilities are given.
        """
        if mask is not None or probability is not None:
            raise ValueError("expected neither mask nor probability, got one; do: draw a string yourself")
        length = int(self.np_random.integers(self.max_length + 1))
        return "".join(self.np_random.choice(list(string.printable), size=length).tolist())

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        return list(sample_n)

    def from_jsonable(self, sample_n: list[str]) -> list[str]:
        return list(sample_n)

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and self.max_length == other.max_length

    __hash__ = None  # type: ignore[assignment]


class TextTurns(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Text in, text out, a whole turn at a time: for policies that show no token ids, such as an API's.

    An action is the text of a turn. It is encoded once, by the environment's codec; when it closes no ``</search>`` or
    ``</answer>``, an EOS ends the turn, which is then invalid. The transcript holds the codec's ids, which need not be
    those that the policy has sampled: do not train on them where the policy's own are to be had.
    """

    # What a text may have for each token that the environment allows; text beyond its limits is not read anyway.
    _CHARACTERS_PER_TOKEN = 32

    def __init__(self, env: SearchLike) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._task: Task = env.get_wrapper_attr("task")
        limits = self._task.limits
        self.action_space = AnyText(limits.max_turn_tokens * self._CHARACTERS_PER_TOKEN)
        self.observation_space = AnyText(limits.max_context_tokens * self._CHARACTERS_PER_TOKEN)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """The prompt as text; see `SearchEnv.reset`."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._task.codec.decode(observation), info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a turn with this text; the observation is what the environment answers, "" at the end.

        Raises:
            ActionError: not a string. EpisodeFinishedError, RetrievalError: see `SearchEnv.step`.
        """
        if not isinstance(action, str):
            raise ActionError(f"expected the text of a turn, got {type(action).__name__}; do: pass a string")
        codec = self._task.codec
        ids = codec.encode(action)
        if not closes_turn(codec.decode(ids)):
            ids = np.append(ids, codec.eos_id)
        observation, reward, terminated, truncated, info = self.env.step(ids)
        return codec.decode(observation), reward, terminated, truncated, info


class OneToken(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """One token an action, arrays of a fixed size as observation: for libraries that know neither text nor sequences.

    ## Action Space
    ``Discrete(vocab_size)``: the token that the policy samples.

    ## Observation Space
    ``Dict`` of arrays of length ``max_context_tokens``: the transcript's ``token_ids`` (int64, padded on the right with
    ``pad_id``), ``attention_mask`` (1 = a token of the transcript), ``loss_mask`` (1 = sampled by the policy) and
    ``info_mask`` (1 = written by the environment after the prompt), int8.

    ``action_masks()`` is what sb3-contrib's MaskablePPO asks for. Reward, ends and info are those of `SearchEnv`.
    """

    def __init__(self, env: SearchLike) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._task: Task = env.get_wrapper_attr("task")
        vocab_size, length = self._task.codec.vocab_size, self._task.limits.max_context_tokens
        self.action_space = gym.spaces.Discrete(vocab_size)
        self.observation_space = gym.spaces.Dict(
            {
                "token_ids": gym.spaces.Box(0, vocab_size - 1, (length,), np.int64),
                **{name: gym.spaces.MultiBinary(length) for name in ("attention_mask", "loss_mask", "info_mask")},
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """See `SearchEnv.reset`."""
        _, info = self.env.reset(seed=seed, options=options)
        return self._observe(), info

    def step(self, action: int) -> tuple[dict[str, npt.NDArray[Any]], SupportsFloat, bool, bool, dict[str, Any]]:
        """Append one sampled token; see `SearchEnv.step`."""
        _, reward, terminated, truncated, info = self.env.step(np.array([action], dtype=np.int64))
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> dict[str, npt.NDArray[Any]]:
        transcript: Transcript = self.env.get_wrapper_attr("transcript")
        length, size = len(transcript), self._task.limits.max_context_tokens
        token_ids = np.full(size, self._task.codec.pad_id, dtype=np.int64)
        masks = np.zeros((3, size), dtype=np.int8)
        token_ids[:length] = transcript.token_ids
        masks[0, :length] = 1
        masks[1, :length] = transcript.loss_mask
        masks[2, :length] = transcript.info_mask
        return {"token_ids": token_ids, "attention_mask": masks[0], "loss_mask": masks[1], "info_mask": masks[2]}

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(vocab_size,) bool; True = makes sense: all tokens but padding, and EOS only in a turn that has begun."""
        episode: Episode = self.env.get_wrapper_attr("episode")
        codec = self._task.codec
        masks = np.ones(codec.vocab_size, dtype=np.bool_)
        if codec.pad_id != codec.eos_id:
            masks[codec.pad_id] = False
        masks[codec.eos_id] = episode.is_turn_open
        return masks
