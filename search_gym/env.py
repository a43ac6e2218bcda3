"""The single environment: a thin Gymnasium shell over `Episode`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from search_gym import tags
from search_gym._plain import take
from search_gym.codec import TokenCodec, TokenIds
from search_gym.episode import Episode, PromptFn
from search_gym.errors import EpisodeFinishedError, OptionError, StateError
from search_gym.limits import Limits
from search_gym.questions import Question
from search_gym.retrievers import Document, Retriever
from search_gym.rewards import RewardFn, exact_match
from search_gym.spaces import TokenSequence
from search_gym.task import OnRetrievalError, Task, make_task
from search_gym.transcript import Transcript

_STATE_VERSION = 1


class SearchEnv(gym.Env[TokenIds, TokenIds]):
    """Answer a question by reasoning and searching, one chunk of tokens at a time.

    ## Description
    The policy writes text as token ids. ``<search>query</search>`` ends its turn and brings documents back inside
    ``<information>``; ``<answer>...</answer>`` ends the episode. Ids are the only truth: sampled tokens are never
    re-encoded, and `transcript` records who wrote each one.

    ## Action Space
    ``TokenSequence(vocab_size, max_turn_tokens, min_length=1)``: any non-empty chunk of what the policy samples, from
    one token to a whole turn. How a turn is cut into chunks changes nothing. A turn ends with the first token whose
    text completes ``</search>`` or ``</answer>``, with EOS, or after ``max_turn_tokens``; tokens of the chunk after
    that are not part of the episode (``info["num_consumed"]``).

    ## Observation Space
    ``TokenSequence(vocab_size, max_context_tokens)``: the ids that the environment appends: the prompt at reset,
    documents or a correction after a turn, nothing while a turn is open and at the end.

    ## Starting State
    A question drawn uniformly with the environment's RNG, or ``options={"question_index": i}``.

    ## Rewards
    0 until the episode ends, then ``reward_fn``'s value (exact match by default), given with the last policy token. It
    reads the answer from the answering turn only.

    ## Episode End
    ``terminated``: the policy answered. ``truncated``: ``max_turns`` turns (invalid ones count) and the answer-only
    turn after them are used up, or ``max_context_tokens`` leaves no room. No document is fetched in the answer-only
    turn.

    ## Information
    At reset ``question_id`` and ``question_index``. At each step ``event`` ("search", "answer", "invalid" or "open"),
    ``content`` (query or answer), ``num_consumed``, ``num_turns``, ``num_searches``, ``retrieval_failed``, and
    ``end_reason`` ("" while running, else "answered", "out_of_turns" or "out_of_context").

    ## Arguments
    * ``questions``: a sequence of `Question`, or a name such as ``"tinywiki"``, ``"hotpotqa"`` or ``"jsonl:path"`` (see
      `search_gym.questions.load`), loaded with ``split`` and ``question_options``.
    * ``retriever``: a `Retriever`, or a name or description such as ``"bm25"`` or ``"hybrid(bm25, dense)"`` (see
      `search_gym.retrievers.load`), built over ``corpus`` (documents, a JSON-lines file or a corpus folder; by default
      those that the question set brings) with ``retriever_options``.
    * ``codec``: a `TokenCodec`, ``"byte"``, ``"tinywiki"``, or a Hugging Face directory, hub name or GGUF file.
    * ``reward_fn``: `Outcome` to float. ``prompt_fn``: question text to user message.
    * ``max_turns``, ``max_turn_tokens``, ``max_observation_tokens``, ``max_context_tokens``, ``close_think``: see
      `Limits`.
    * ``top_k``: documents per search. ``on_retrieval_error``: "raise", or "observe" to tell the policy and go on.
    * ``retrieval_timeout``: seconds after which a search has failed; None waits.
    * ``render_mode``: "ansi" or "human".

    ## References
    Jin et al. 2025, Search-R1, arXiv 2503.09516.

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        questions: str | Sequence[Question],
        retriever: str | Mapping[str, Any] | Retriever = "bm25",
        codec: str | TokenCodec = "byte",
        reward_fn: RewardFn = exact_match,
        *,
        prompt_fn: str | PromptFn = tags.search_r1_prompt,
        max_turns: int = 4,
        top_k: int = 3,
        max_turn_tokens: int = 500,
        max_observation_tokens: int = 500,
        max_context_tokens: int = 4096,
        close_think: bool = True,
        on_retrieval_error: OnRetrievalError = "raise",
        retrieval_timeout: float | None = None,
        split: str = "test",
        corpus: str | Path | Sequence[Document] | None = None,
        question_options: Mapping[str, Any] | None = None,
        retriever_options: Mapping[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise OptionError(f"expected render_mode in {self.metadata['render_modes']} or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.task = make_task(
            questions=questions,
            retriever=retriever,
            codec=codec,
            corpus=corpus,
            split=split,
            question_options=question_options,
            retriever_options=retriever_options,
            prompt_fn=prompt_fn,
            limits=Limits(max_turns, max_turn_tokens, max_observation_tokens, max_context_tokens, close_think),
            reward_fn=reward_fn,
            top_k=top_k,
            on_retrieval_error=on_retrieval_error,
            retrieval_timeout=retrieval_timeout,
        )
        self.action_space, self.observation_space = make_spaces(self.task)
        self._episode: Episode | None = None
        self._num_printed = 0

    @property
    def episode(self) -> Episode:
        """The current episode.

        Raises:
            EpisodeFinishedError: there is none yet.
        """
        if self._episode is None:
            raise EpisodeFinishedError("expected a started episode, got none; do: call reset() first")
        return self._episode

    @property
    def transcript(self) -> Transcript:
        """Ids, spans and masks of the current episode."""
        return self.episode.transcript

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[TokenIds, dict[str, Any]]:
        """Start an episode; ``options={"question_index": i}`` chooses the question.

        Raises:
            OptionError: an unknown option, or an index out of range.
            PromptError: the question does not fit; the episode before it goes on then.
        """
        super().reset(seed=seed)
        index = choose_question(self.np_random, self.task, options)
        episode = self.task.episode(index)
        observation = episode.start()
        self._episode = episode
        self._num_printed = 0
        if self.render_mode == "human":
            self.render()
        return observation, {"question_id": episode.question.question_id, "question_index": index}

    def step(self, action: TokenIds) -> tuple[TokenIds, SupportsFloat, bool, bool, dict[str, Any]]:
        """Append a chunk (n,) int64 of sampled ids. A step that raises one of these errors has changed nothing.

        Raises:
            EpisodeFinishedError: the episode has ended or was never started.
            ActionError: not a non-empty 1-D array of ids in the vocabulary.
            RetrievalError: the retriever failed and ``on_retrieval_error`` is "raise".
        """
        episode = self.episode
        turn = episode.begin(action)
        documents = self.task.retrieve([turn.content])[0] if episode.needs_documents(turn) else None
        result = episode.finish(turn, documents)
        if self.render_mode == "human":
            self.render()
        return result

    def render(self) -> str | None:  # type: ignore[override]
        """The transcript with coloured spans: returned for "ansi", printed for "human", turn by turn as it grows."""
        from search_gym import render

        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass render_mode='ansi' to gym.make")
            return None
        page = render.to_ansi(self.transcript, self.task.codec)
        if self.render_mode == "ansi":
            return page
        if not self.episode.is_turn_open:
            # Complete turns never change, so what was printed is a prefix of the page.
            print(page[self._num_printed :], end="", flush=True)
            self._num_printed = len(page)
        return None

    def get_state(self) -> dict[str, Any]:
        """The episode and the RNG as plain, JSON-able data, for `set_state` of any environment of the same task."""
        return save_slot(self.task, self.np_random, self._episode)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `get_state` returned: the same actions then give the same results, resets included.

        Raises:
            StateError: the state is malformed, of another version, or of a codec with another vocabulary.
        """
        self.np_random, self._episode = load_slot(self.task, state)
        self._num_printed = 0


def save_slot(task: Task, np_random: np.random.Generator, episode: Episode | None) -> dict[str, Any]:
    """An episode of ``task`` and the RNG that draws the next ones, as plain, JSON-able data."""
    return {
        "version": _STATE_VERSION,
        "vocab_size": task.codec.vocab_size,
        "np_random": np_random.bit_generator.state,
        "episode": None if episode is None else episode.to_state(),
    }


def load_slot(task: Task, state: Mapping[str, Any]) -> tuple[np.random.Generator, Episode | None]:
    """The RNG and the episode that `save_slot` described.

    Raises:
        StateError: the state is malformed, of another version, or of a codec with another vocabulary.
    """
    try:
        found = (take(state, "version", int), take(state, "vocab_size", int))
        np_random = np.random.Generator(np.random.PCG64())
        np_random.bit_generator.state = take(state, "np_random", dict)
        saved = None if state["episode"] is None else take(state, "episode", dict)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StateError(f"expected a state from get_state(), got one that is malformed: {error!r}") from error
    expected = (_STATE_VERSION, task.codec.vocab_size)
    if found != expected:
        raise StateError(f"expected a state of (version, vocab_size) {expected}, got {found}; do: use the same codec")
    episode = None
    if saved is not None:
        episode = task.episode(0)
        episode.restore(saved)
    return np_random, episode


def make_spaces(task: Task) -> tuple[TokenSequence, TokenSequence]:
    """Action and observation space of one slot."""
    vocab_size, limits = task.codec.vocab_size, task.limits
    actions = TokenSequence(vocab_size, limits.max_turn_tokens, min_length=1)
    return actions, TokenSequence(vocab_size, limits.max_context_tokens)


def choose_question(np_random: np.random.Generator, task: Task, options: Mapping[str, Any] | None) -> int:
    """The index that ``options`` asks for, or a uniform draw.

    Raises:
        OptionError: ``options`` holds anything else.
    """
    if not options:
        # Uniform, as questions are far fewer than 2**53, and cheaper than integers().
        return int(np_random.random() * len(task.questions))
    if set(options) != {"question_index"} or not isinstance(options["question_index"], (int, np.integer)):
        raise OptionError(f"expected options={{'question_index': int}}, got {dict(options)!r}")
    return int(options["question_index"])
