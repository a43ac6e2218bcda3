"""The native vector environment: many episodes, one retrieval call a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from search_gym._background import BackgroundSearch
from search_gym._plain import take_list
from search_gym.codec import TokenIds
from search_gym.env import SearchEnv, choose_question, load_slot, save_slot
from search_gym.episode import Episode, StepResult
from search_gym.errors import ActionError, EpisodeFinishedError, OptionError, RetrievalError, StateError
from search_gym.retrievers import Document
from search_gym.tags import Turn
from search_gym.transcript import Transcript

Observations = tuple[TokenIds, ...]
VectorStep = tuple[Observations, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]

Found = Sequence[Document] | RetrievalError

_EMPTY = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Sent:
    """A step of some slots that has begun; to be ended by `SearchVectorEnv.recv`."""

    slots: tuple[int, ...]
    turns: tuple[Turn, ...]
    searching: tuple[int, ...]
    documents: Sequence[Found] | Future[list[Found]]

    @property
    def is_ready(self) -> bool:
        """Whether `recv` would not have to wait."""
        return not isinstance(self.documents, Future) or self.documents.done()


class SearchVectorEnv(gym.vector.VectorEnv[Observations, Sequence[TokenIds], npt.NDArray[Any]]):
    """``num_envs`` independent `SearchEnv` episodes that share one retriever and search together.

    It agrees step by step with ``SyncVectorEnv([SearchEnv] * num_envs)``, but calls ``retriever.search`` once a step,
    with the queries of all slots; when that call fails, it fails for all of them. Observations and actions are tuples
    with one (n,) int64 array per slot.

    Autoreset is DISABLED: one slot, one episode, one rollout. A finished slot keeps its ``terminated`` / ``truncated``,
    takes an empty action (a no-op that observes nothing), and starts again with
    ``reset(options={"reset_mask": (num_envs,) bool})``. ``options["question_index"]`` is one int for all slots or
    one for each.

    `send` and `recv` are the two halves of a step, of as many slots as one likes: what a rollout uses whose slots do
    not wait for one another.

    All other arguments are those of `SearchEnv`.
    """

    metadata: dict[str, Any] = {**SearchEnv.metadata, "autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, *args: Any, **kwargs: Any) -> None:
        if num_envs < 1:
            raise OptionError(f"expected num_envs >= 1, got {num_envs}")
        single = SearchEnv(*args, **kwargs)
        self.num_envs = num_envs
        self.task = single.task
        self.render_mode = single.render_mode
        self.single_action_space, self.single_observation_space = single.action_space, single.observation_space
        self.action_space = batch_space(single.action_space, num_envs)
        self.observation_space = batch_space(single.observation_space, num_envs)
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int] = [-1] * num_envs
        self._episodes: list[Episode | None] = [None] * num_envs
        self._observations: list[TokenIds] = [_EMPTY] * num_envs
        self._terminated = np.zeros(num_envs, dtype=np.bool_)
        self._truncated = np.zeros(num_envs, dtype=np.bool_)
        self._searcher: BackgroundSearch[Found] | None = None

    @property
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Each slot's random number generator."""
        return tuple(self._rng(slot) for slot in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each slot's generator; -1 where it is not known, after `set_state`."""
        return tuple(self._seeds[slot] for slot, _ in enumerate(self.np_random))

    def _rng(self, slot: int, seed: int | None = None) -> np.random.Generator:
        rng = self._rngs[slot]
        if rng is None or seed is not None:
            rng, self._seeds[slot] = seeding.np_random(seed)
            self._rngs[slot] = rng
        return rng

    @property
    def episodes(self) -> tuple[Episode, ...]:
        """The episode of each slot.

        Raises:
            EpisodeFinishedError: a slot was never reset.
        """
        started = tuple(episode for episode in self._episodes if episode is not None)
        if len(started) != self.num_envs:
            raise EpisodeFinishedError("expected started episodes, got a slot without one; do: call reset() first")
        return started

    @property
    def transcripts(self) -> tuple[Transcript, ...]:
        """Ids, spans and masks of each slot's episode."""
        return tuple(episode.transcript for episode in self.episodes)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start an episode in every slot, or in those of ``options["reset_mask"]``.

        ``seed``: slot i is seeded with ``seed + i``, or with ``seed[i]``. Slots outside the mask repeat their last
        observation.

        Raises:
            OptionError: an unknown option, or one of the wrong shape.
            PromptError: a drawn question does not fit; no slot has been reset then.
        """
        options = dict(options or {})
        mask = self._reset_mask(options.pop("reset_mask", None))
        indices = self._question_indices(options)
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        if len(seeds) != self.num_envs:
            raise OptionError(f"expected one seed for each of {self.num_envs} slots, got {len(seeds)}")
        infos: dict[int, dict[str, Any]] = {}
        started: dict[int, tuple[Episode, TokenIds]] = {}
        for slot in np.flatnonzero(mask).tolist():
            index = choose_question(self._rng(slot, seeds[slot]), self.task, indices[slot])
            episode = self.task.episode(index)
            started[slot] = episode, episode.start()
            infos[slot] = {"question_id": episode.question.question_id, "question_index": index}
        for slot, (episode, prompt) in started.items():
            self._episodes[slot], self._observations[slot] = episode, prompt
        self._terminated[mask] = self._truncated[mask] = False
        return self._copy_observations(), self._join_infos(infos)

    def _reset_mask(self, mask: Any) -> npt.NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if (
            not isinstance(mask, np.ndarray)
            or mask.dtype != np.bool_
            or mask.shape != (self.num_envs,)
            or not mask.any()
        ):
            raise OptionError(f"expected options['reset_mask'] ({self.num_envs},) bool with a True, got {mask!r}")
        return mask

    def _question_indices(self, options: dict[str, Any]) -> list[dict[str, Any] | None]:
        if not options:
            return [None] * self.num_envs
        if set(options) != {"question_index"}:
            raise OptionError(f"expected options 'reset_mask' and 'question_index', got {sorted(options)}")
        try:
            indices = np.broadcast_to(np.asarray(options["question_index"]), (self.num_envs,)).tolist()
        except ValueError as error:
            raise OptionError(
                f"expected one question_index or one for each of {self.num_envs} slots: {error}"
            ) from error
        return [{"question_index": index} for index in indices]

    def step(self, actions: Sequence[TokenIds]) -> VectorStep:
        """Append one chunk to every slot's transcript; an empty chunk is a no-op on a finished slot.

        A step that raises one of these errors has changed nothing in any slot.

        Raises:
            ActionError: not one action for each slot, or an invalid one.
            EpisodeFinishedError: a chunk for a finished slot, or a slot was never started.
            RetrievalError: the retriever failed and ``on_retrieval_error`` is "raise".
        """
        episodes = self.episodes
        if len(actions) != self.num_envs:
            raise ActionError(f"expected {self.num_envs} actions, got {len(actions)}")
        slots = [
            slot
            for slot, (episode, action) in enumerate(zip(episodes, actions, strict=True))
            if not (episode.is_finished and np.size(action) == 0)
        ]
        results = self.recv(self.send(slots, [actions[slot] for slot in slots]))
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        rewards[slots] = [reward for _, reward, *_ in results]
        joined_infos = self._join_infos({slot: info for slot, (*_, info) in zip(slots, results, strict=True)})
        return self._copy_observations(), rewards, self._terminated.copy(), self._truncated.copy(), joined_infos

    def send(self, slots: Sequence[int], actions: Sequence[TokenIds], *, background: bool = False) -> Sent:
        """Begin a step of some slots: read the chunks and start the search of those that search, all in one call.

        Nothing changes in any slot before `recv`, to which what is returned has to be given, once, before other chunks
        are sent for these slots. ``background`` searches in a thread, so that other slots can go on meanwhile; what is
        sent while a search is under way is searched for in one call after it.

        Raises:
            ActionError: not one action for each of ``slots``, or an invalid one.
            EpisodeFinishedError: a slot's episode has ended or was never started.
            RetrievalError: the retriever failed and ``on_retrieval_error`` is "raise"; from `recv` with ``background``.
        """
        if len(actions) != len(slots):
            raise ActionError(f"expected {len(slots)} actions, got {len(actions)}")
        turns = [self.episode(slot).begin(action) for slot, action in zip(slots, actions, strict=True)]
        searching = [
            (slot, turn.content)
            for slot, turn in zip(slots, turns, strict=True)
            if self.episode(slot).needs_documents(turn)
        ]
        if not searching:
            return Sent(tuple(slots), tuple(turns), (), [])

        queries = [query for _, query in searching]
        if background:
            self._searcher = self._searcher or BackgroundSearch(self.task.retrieve)
            documents = self._searcher.submit(queries)
        else:
            documents = self.task.retrieve(queries)
        return Sent(tuple(slots), tuple(turns), tuple(slot for slot, _ in searching), documents)

    def recv(self, sent: Sent) -> list[StepResult]:
        """End a step that `send` began, when its documents are there: a result for each of its slots, in order.

        Raises:
            RetrievalError: the search failed in the background and ``on_retrieval_error`` is "raise".
        """
        found = sent.documents.result() if isinstance(sent.documents, Future) else sent.documents
        documents = dict(zip(sent.searching, found, strict=True))
        results = []
        for slot, turn in zip(sent.slots, sent.turns, strict=True):
            result = self.episode(slot).finish(turn, documents.get(slot))
            self._observations[slot], _, self._terminated[slot], self._truncated[slot], _ = result
            results.append(result)
        return results

    def episode(self, slot: int) -> Episode:
        """The episode in ``slot``.

        Raises:
            EpisodeFinishedError: the slot was never reset.
        """
        episode = self._episodes[slot]
        if episode is None:
            raise EpisodeFinishedError(f"expected a started episode in slot {slot}, got none; do: call reset() first")
        return episode

    def close_extras(self, **kwargs: Any) -> None:
        """Wait for searches that are under way."""
        if self._searcher is not None:
            self._searcher.close()
            self._searcher = None

    def _copy_observations(self) -> Observations:
        return tuple(observation.copy() for observation in self._observations)

    def _join_infos(self, infos: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """What Gymnasium's ``_add_info`` makes of the infos of these slots, column by column.

        Each key gets an array (num_envs,) with 0, False or None for the other slots, and ``_key`` says for which slots.
        """
        joined: dict[str, Any] = {}
        slots = list(infos)
        for key in next(iter(infos.values()), ()):
            values = [info[key] for info in infos.values()]
            dtype = type(values[0]) if isinstance(values[0], (int, float)) else object
            joined[key] = np.full(self.num_envs, None if dtype is object else 0, dtype=dtype)
            joined[key][slots] = values
            joined[f"_{key}"] = np.zeros(self.num_envs, dtype=np.bool_)
            joined[f"_{key}"][slots] = True
        return joined

    def render(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """Each slot's transcript with coloured spans for "ansi"; all of them printed for "human"."""
        from search_gym import render

        if self.render_mode is None:
            return None
        pages = tuple(render.to_ansi(transcript, self.task.codec) for transcript in self.transcripts)
        if self.render_mode == "ansi":
            return pages
        print("\n".join(f"--- slot {slot} ---\n{page}" for slot, page in enumerate(pages)), flush=True)
        return None

    def get_state(self) -> dict[str, Any]:
        """All slots as plain, JSON-able data, for `set_state` of any vector environment of the same task and size."""
        return {
            "slots": [
                save_slot(self.task, rng, episode) for rng, episode in zip(self.np_random, self._episodes, strict=True)
            ],
            "observations": [observation.tolist() for observation in self._observations],
            "terminated": self._terminated.tolist(),
            "truncated": self._truncated.tolist(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned: the same actions then give the same results, resets included.

        Raises:
            StateError: the state is malformed, of another version, size, or codec.
        """
        try:
            slots = [load_slot(self.task, slot) for slot in take_list(state, "slots", dict)]
            observations = [np.array(ids, dtype=np.int64) for ids in take_list(state, "observations", list)]
            ends = [np.array(take_list(state, key, bool), dtype=np.bool_) for key in ("terminated", "truncated")]
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StateError(f"expected a state from get_state(), got one that is malformed: {error!r}") from error
        sizes = {len(slots), len(observations), *map(len, ends)}
        if sizes != {self.num_envs}:
            raise StateError(
                f"expected a state of {self.num_envs} slots, got {sorted(sizes)}; do: use the same num_envs"
            )
        self._rngs = [rng for rng, _ in slots]
        self._episodes = [episode for _, episode in slots]
        self._seeds = [-1] * self.num_envs
        self._observations, (self._terminated, self._truncated) = observations, ends
