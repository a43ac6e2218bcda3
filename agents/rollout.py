"""Rollouts: environments and a generator in, token-aligned records out, and a padded batch for the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from agents.generation import Generator, SampledTurn
from search_gym import Question, SearchGymError, SearchVectorEnv, Span
from search_gym.vector_env import Sent

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
    overlap: bool = False,
) -> list[Rollout]:
    """Run one episode for each entry of ``question_index`` and keep their order.

    A slot whose episode has ended takes up the next question at once. ``seed`` and an episode's number, counted from
    ``first_episode``, decide every token that it samples, whatever the number of environments. ``on_progress`` is told
    how many episodes have finished, after each step in which some have.

    ``overlap``: search in a thread while other slots go on. Which slots take their next turn together then depends on
    when documents arrive, which changes nothing but rounding.

    Raises:
        ValueError: fewer questions than environments.
        SearchGymError: the generator does not stop where a turn ends. RetrievalError: see `SearchVectorEnv.send`.
    """
    indices = _checked(question_index, envs)
    play = _Play(envs, generator, indices, seed, first_episode)
    while play.num_finished < len(indices):
        before = play.num_finished
        play.fill()
        ended = generator.advance()
        if ended:
            play.send(ended, background=overlap)
        play.receive(wait=not ended)
        if on_progress is not None and play.num_finished > before:
            on_progress(play.num_finished)
    return play.rollouts


def collect_waves(
    envs: SearchVectorEnv,
    generator: Generator,
    question_index: Sequence[int] | npt.NDArray[np.int64],
    seed: int,
    *,
    first_episode: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[list[Rollout]]:
    """`collect` for ``envs.num_envs`` questions at a time, so that what is finished can be kept; the last wave may be
    smaller."""
    indices = _checked(question_index, envs)
    for start in range(0, len(indices), envs.num_envs):
        part = indices[start : start + envs.num_envs]
        play = _Play(envs, generator, part, seed, first_episode + start)
        while play.num_finished < len(part):
            before = play.num_finished
            play.fill()
            play.send(generator.advance())
            play.receive(wait=True)
            if on_progress is not None and play.num_finished > before:
                on_progress(start + play.num_finished)
        yield play.rollouts


def _checked(question_index: Sequence[int] | npt.NDArray[np.int64], envs: SearchVectorEnv) -> npt.NDArray[np.int64]:
    indices = np.asarray(question_index, dtype=np.int64)
    if len(indices) < envs.num_envs:
        raise ValueError(
            f"expected at least {envs.num_envs} questions, one for each environment, got {len(indices)}; "
            "do: make fewer environments"
        )
    return indices


@dataclass(slots=True)
class _Record:
    """What the environment does not know of the episode in a slot."""

    number: int
    logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    turns: list[TurnEvent] = field(default_factory=list)
    reward: float = 0.0
    num_failures: int = 0


class _Play:
    """Episodes 0, 1, ... of ``question_index`` in as many slots as there are, and the rollouts of those that ended."""

    def __init__(
        self,
        envs: SearchVectorEnv,
        generator: Generator,
        question_index: npt.NDArray[np.int64],
        seed: int,
        first_episode: int,
    ) -> None:
        self._envs, self._generator = envs, generator
        self._question_index, self._first_episode = question_index, first_episode
        num_slots = min(envs.num_envs, len(question_index))
        self._free = list(range(num_slots))
        self._begun = 0
        self._records: dict[int, _Record] = {}
        self._sent: list[tuple[Sent, dict[int, SampledTurn]]] = []
        self._finished: dict[int, Rollout] = {}
        generator.start(num_slots, seed, first_episode)

    @property
    def num_finished(self) -> int:
        return len(self._finished)

    @property
    def rollouts(self) -> list[Rollout]:
        """All rollouts in the order of their questions, when all have ended."""
        return [self._finished[number] for number in range(len(self._question_index))]

    def fill(self) -> None:
        """Begin an episode in every free slot for which there is a question left."""
        envs, generator = self._envs, self._generator
        slots = self._free[: len(self._question_index) - self._begun]
        if not slots:
            return
        self._free = self._free[len(slots) :]
        numbers = range(self._begun, self._begun + len(slots))
        self._begun += len(slots)
        mask = np.zeros(envs.num_envs, dtype=np.bool_)
        mask[slots] = True
        questions = np.zeros(envs.num_envs, dtype=np.int64)
        questions[slots] = self._question_index[list(numbers)]
        prompts, _ = envs.reset(options={"question_index": questions, "reset_mask": mask})
        generator.place(slots, [self._first_episode + number for number in numbers])
        for slot, number in zip(slots, numbers, strict=True):
            self._records[slot] = _Record(number)
        self._begin_turns(slots, [prompts[slot] for slot in slots])

    def _begin_turns(self, slots: Sequence[int], observations: Sequence[TokenIds]) -> None:
        self._generator.extend(slots, observations)
        self._generator.begin(slots, [self._envs.episode(slot).turn_tokens_left for slot in slots])

    def send(self, ended: Sequence[tuple[int, SampledTurn]], *, background: bool = False) -> None:
        """Hand turns that have ended to the environment."""
        slots, turns = [slot for slot, _ in ended], [turn.token_ids for _, turn in ended]
        self._sent.append((self._envs.send(slots, turns, background=background), dict(ended)))

    def receive(self, *, wait: bool) -> None:
        """Take what the environment answers, as far as it has; with ``wait``, at least one answer."""
        if wait and self._sent and not any(sent.is_ready for sent, _ in self._sent):
            self._take(*self._sent.pop(0))
        waiting, self._sent = self._sent, []
        for sent, turns in waiting:
            if sent.is_ready:  # asked once, because the answer may change at any moment
                self._take(sent, turns)
            else:
                self._sent.append((sent, turns))

    def _take(self, sent: Sent, turns: Mapping[int, SampledTurn]) -> None:
        goes_on: list[int] = []
        observations: list[TokenIds] = []
        for slot, result in zip(sent.slots, self._envs.recv(sent), strict=True):
            observation, reward, terminated, truncated, info = result
            turn, record = turns[slot], self._records[slot]
            if info["num_consumed"] != len(turn.token_ids) or info["event"] == "open":
                raise SearchGymError(
                    f"expected the generator to stop where the turn ends, got {len(turn.token_ids)} tokens of which "
                    f"{info['num_consumed']} belong to a turn that is {info['event']!r}; "
                    "do: stop at the first token whose text makes search_gym.tags.closes_turn true"
                )
            record.logprobs.append(turn.logprobs)
            record.turns.append(TurnEvent(info["event"], info["content"]))
            record.num_failures += info["retrieval_failed"]
            record.reward += reward
            if terminated or truncated:
                self._finish(slot, terminated, info["num_searches"])
            else:
                goes_on.append(slot)
                observations.append(observation)
        if goes_on:
            self._begin_turns(goes_on, observations)

    def _finish(self, slot: int, terminated: bool, num_searches: int) -> None:
        self._generator.drop([slot])
        self._free.append(slot)
        record, episode = self._records.pop(slot), self._envs.episode(slot)
        transcript = episode.transcript
        self._finished[record.number] = Rollout(
            question=episode.question,
            question_index=int(self._question_index[record.number]),
            token_ids=transcript.token_ids,
            spans=transcript.spans,
            loss_mask=transcript.loss_mask,
            logprobs=np.concatenate(record.logprobs),
            reward=record.reward,
            terminated=terminated,
            truncated=not terminated,
            turns=tuple(record.turns),
            num_searches=num_searches,
            num_retrieval_failures=record.num_failures,
        )


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
