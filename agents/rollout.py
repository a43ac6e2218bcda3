"""Rollouts: environments and a generator in, token-aligned records out, and a padded batch for the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.generation import Generator
from search_gym import Question, SearchGymError, SearchVectorEnv, Span

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One finished turn: ``event`` is "search", "answer" or "invalid"; ``content`` the query or the answer."""

    event: str
    content: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished episode.

    ``token_ids`` (T,) int64 and ``loss_mask`` (T,) bool come from the environment's transcript, True = sampled by the
    policy; ``logprobs`` (loss_mask.sum(),) float32 from the generator. ``reward`` belongs to the last sampled token.
    ``num_searches`` counts those that were executed, ``num_retrieval_failures`` those of them that failed.
    """

    question: Question
    question_index: int
    token_ids: TokenIds
    spans: tuple[Span, ...]
    loss_mask: npt.NDArray[np.bool_]
    logprobs: npt.NDArray[np.float32]
    reward: float
    terminated: bool
    truncated: bool
    turns: tuple[TurnEvent, ...]
    num_searches: int
    num_retrieval_failures: int = 0

    @property
    def answer(self) -> str | None:
        """What the policy answered; None when the episode was truncated."""
        return self.turns[-1].content if self.terminated else None


def collect(
    envs: SearchVectorEnv,
    generator: Generator,
    question_index: Sequence[int] | npt.NDArray[np.int64],
    seed: int,
    *,
    first_episode: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Run one episode for each entry of ``question_index``, in waves of ``envs.num_envs``, and keep their order.

    ``seed`` and an episode's number, counted from ``first_episode``, decide every token that it samples, whatever the
    number of environments. ``on_progress`` is told after each turn how many episodes have finished.

    Raises:
        ValueError: fewer questions than environments.
    """
    waves = collect_waves(envs, generator, question_index, seed, first_episode=first_episode, on_progress=on_progress)
    return [rollout for wave in waves for rollout in wave]


def collect_waves(
    envs: SearchVectorEnv,
    generator: Generator,
    question_index: Sequence[int] | npt.NDArray[np.int64],
    seed: int,
    *,
    first_episode: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[list[Rollout]]:
    """`collect`, one wave at a time; the last one may be smaller than ``envs.num_envs``."""
    indices = np.asarray(question_index, dtype=np.int64)
    if len(indices) < envs.num_envs:
        raise ValueError(
            f"expected at least {envs.num_envs} questions, one for each environment, got {len(indices)}; "
            "do: make fewer environments"
        )
    for start in range(0, len(indices), envs.num_envs):
        part = indices[start : start + envs.num_envs]
        report = None if on_progress is None else lambda done, base=start: on_progress(base + done)
        yield _collect_wave(envs, generator, part, seed, first_episode + start, report)


def _collect_wave(
    envs: SearchVectorEnv,
    generator: Generator,
    question_index: npt.NDArray[np.int64],
    seed: int,
    first_episode: int,
    on_progress: Callable[[int], None] | None,
) -> list[Rollout]:
    num_slots = len(question_index)
    slots = np.arange(envs.num_envs)
    padded = np.resize(question_index, envs.num_envs)
    options = {"question_index": padded, "reset_mask": slots < num_slots}
    observations, _ = envs.reset(seed=seed, options=options)

    generator.start(num_slots, seed, first_episode)
    active = list(range(num_slots))
    generator.extend(active, [observations[slot] for slot in active])
    logprobs: list[list[npt.NDArray[np.float32]]] = [[] for _ in active]
    turns: list[list[TurnEvent]] = [[] for _ in active]
    rewards = np.zeros(num_slots)
    terminated = truncated = np.zeros(envs.num_envs, dtype=np.bool_)
    num_searches, num_failures = np.zeros((2, num_slots), dtype=np.int64)
    idle = np.zeros(0, dtype=np.int64)
    while active:
        samples = generator.sample(active, [envs.episodes[slot].turn_tokens_left for slot in active])
        actions = [idle] * envs.num_envs
        for slot, sample in zip(active, samples, strict=True):
            actions[slot] = sample.token_ids
        observations, step_rewards, terminated, truncated, infos = envs.step(actions)
        for slot, sample in zip(active, samples, strict=True):
            if infos["num_consumed"][slot] != len(sample.token_ids) or infos["event"][slot] == "open":
                raise SearchGymError(
                    f"expected the generator to stop where the turn ends, got {len(sample.token_ids)} tokens of which "
                    f"{infos['num_consumed'][slot]} belong to a turn that is {infos['event'][slot]!r}; "
                    "do: stop at the first token whose text makes search_gym.tags.closes_turn true"
                )
            logprobs[slot].append(sample.logprobs)
            turns[slot].append(TurnEvent(str(infos["event"][slot]), str(infos["content"][slot])))
            num_searches[slot] = infos["num_searches"][slot]
            num_failures[slot] += infos["retrieval_failed"][slot]
        rewards += step_rewards[:num_slots]
        has_ended = terminated | truncated
        generator.drop([slot for slot in active if has_ended[slot]])
        active = [slot for slot in active if not has_ended[slot]]
        if active:
            generator.extend(active, [observations[slot] for slot in active])
        if on_progress is not None:
            on_progress(num_slots - len(active))

    return [
        Rollout(
            question=episode.question,
            question_index=int(question_index[slot]),
            token_ids=episode.transcript.token_ids,
            spans=episode.transcript.spans,
            loss_mask=episode.transcript.loss_mask,
            logprobs=np.concatenate(logprobs[slot]),
            reward=float(rewards[slot]),
            terminated=bool(terminated[slot]),
            truncated=bool(truncated[slot]),
            turns=tuple(turns[slot]),
            num_searches=int(num_searches[slot]),
            num_retrieval_failures=int(num_failures[slot]),
        )
        for slot, episode in enumerate(envs.episodes[:num_slots])
    ]


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Rollouts padded on the right to a common length T; every (B, T) tensor is indexed by the token it talks about.

    ``attention_mask``: True = a token of the transcript. ``response_mask``: True = a token after the prompt, whoever
    wrote it. ``loss_mask``: True = sampled by the policy. ``old_logprobs`` and ``rewards`` are 0 outside ``loss_mask``;
    the whole reward stands on the last sampled token. Rows of one ``group_ids`` answer the same draw of a question.
    """

    token_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    rewards: Float[Tensor, "B T"]
    group_ids: Int[Tensor, " B"]

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    def select(self, rows: Int[Tensor, " N"]) -> RolloutBatch:
        """The batch of ``rows``, without the columns that are padding in all of them."""
        length = int(self.attention_mask[rows].sum(dim=1).max())
        columns = (
            self.token_ids,
            self.attention_mask,
            self.response_mask,
            self.loss_mask,
            self.old_logprobs,
            self.rewards,
        )
        return RolloutBatch(*(x[rows, :length] for x in columns), group_ids=self.group_ids[rows])


def collate(
    rollouts: Sequence[Rollout], pad_id: int, device: torch.device | str = "cpu", *, group_size: int = 1
) -> RolloutBatch:
    """Pad ``rollouts`` into one batch; each ``group_size`` of them in a row are a group.

    Raises:
        ValueError: no rollouts, or one whose log-probabilities and sampled tokens differ in number.
    """
    if not rollouts:
        raise ValueError("expected at least one rollout, got none")
    shape = (len(rollouts), max(len(rollout.token_ids) for rollout in rollouts))
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask, response_mask, loss_mask = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
    old_logprobs, rewards = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for row, rollout in enumerate(rollouts):
        length, sampled = len(rollout.token_ids), np.flatnonzero(rollout.loss_mask)
        if len(sampled) != len(rollout.logprobs):
            raise ValueError(
                f"expected one log-probability for each of {len(sampled)} sampled tokens, got {len(rollout.logprobs)}"
            )
        token_ids[row, :length] = rollout.token_ids
        attention_mask[row, :length] = True
        response_mask[row, rollout.spans[0].stop : length] = True
        loss_mask[row, sampled] = True
        old_logprobs[row, sampled] = rollout.logprobs
        rewards[row, sampled[-1]] = rollout.reward
    group_ids = np.arange(len(rollouts)) // group_size
    arrays = (token_ids, attention_mask, response_mask, loss_mask, old_logprobs, rewards, group_ids)
    return RolloutBatch(*(torch.from_numpy(array).to(device) for array in arrays))
