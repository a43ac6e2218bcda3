"""Does an environment tell the same story however the tokens of the policy are cut into chunks?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from search_gym.codec import TAG_STRINGS, TokenCodec, TokenIds
from search_gym.env import SearchEnv
from search_gym.errors import OptionError
from search_gym.testing._failures import InvarianceError, SubjectError
from search_gym.transcript import Transcript
from search_gym.vector_env import SearchVectorEnv

TurnSampler = Callable[[np.random.Generator], TokenIds]
MakeEnv = Callable[[], "gym.Env[Any, Any] | SearchVectorEnv"]

# The largest chunk, what draws the sizes up to it (None: all have that size), and the words for a message.
_Partition = tuple[int, np.random.Generator | None, str]

_NOTHING = np.zeros(0, dtype=np.int64)


def check_chunking(
    make_env: MakeEnv,
    sample_turn: TurnSampler | None = None,
    *,
    num_episodes: int = 6,
    num_partitions: int = 4,
    num_turns: int = 12,
    seed: int = 0,
) -> None:
    """The same tokens in other chunks give the same transcript, observations, rewards, masks and end.

    A random stream of tokens is played one token at a time, in the largest chunks that the action space allows, and in
    ``num_partitions`` random partitions, each after a reset with the same seed. What a step does not consume
    (``info["num_consumed"]``) begins the next chunk. After each play the sampled ids of the transcript must be those
    that were consumed, and its other ids those that were observed.

    ``make_env`` makes a `SearchVectorEnv`, or any Gymnasium environment whose actions and observations are arrays of
    token ids, whose action space has a ``max_length``, whose infos have ``num_consumed``, and that has a
    ``transcript``. ``sample_turn`` draws the tokens of a turn or of any part of one, and ``num_turns`` of these make
    the stream; by default they are tags, words and random ids of a `SearchEnv`'s codec.

    Raises:
        InvarianceError: a partition changed something. SubjectError: the environment lacks one of the things above.
    """
    if min(num_episodes, num_partitions, num_turns) < 1:
        raise OptionError("expected num_episodes, num_partitions and num_turns >= 1, got a smaller one; do: raise it")
    slots = _make_slots(make_env)
    draw = sample_turn or _sampler(slots.codec)
    for episode in range(num_episodes):
        rng = np.random.default_rng([seed, episode])
        streams = [np.concatenate([draw(rng) for _ in range(num_turns)]) for _ in range(slots.num_slots)]
        reset_seed = int(rng.integers(2**31))
        expected = _play(slots, streams, reset_seed, 1)
        partitions: list[_Partition] = [(slots.max_chunk, None, f"chunks of {slots.max_chunk} tokens")]
        for most in rng.integers(2, max(slots.max_chunk, 2) + 1, size=num_partitions).tolist():
            partitions.append((most, rng, f"chunks of 1 to {most} tokens"))
        for most, sizes, name in partitions:
            plays = _play(slots, streams, reset_seed, most, sizes)
            for slot, (one, other) in enumerate(zip(expected, plays, strict=True)):
                _compare(one, other, f"slot {slot} of episode {episode} (reset with seed {reset_seed})", name)
    slots.env.close()


class _Event(NamedTuple):
    """What a step that was not silent said, after ``position`` tokens of the stream."""

    position: int
    observation: list[int]
    reward: float
    terminated: bool
    truncated: bool


@dataclass(slots=True)
class _Play:
    """One slot's episode."""

    stream: TokenIds
    prompt: list[int]
    position: int = 0
    is_over: bool = False
    events: list[_Event] = field(default_factory=list)
    transcript: Transcript = field(default_factory=Transcript)


class _Single:
    """A Gymnasium environment as one slot."""

    num_slots = 1

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.max_chunk = _max_length(env.action_space)

    @property
    def codec(self) -> TokenCodec | None:
        env = self.env.unwrapped
        return env.task.codec if isinstance(env, SearchEnv) else None

    def reset(self, seed: int) -> Sequence[TokenIds]:
        return (self.env.reset(seed=seed)[0],)

    def step(self, actions: Sequence[TokenIds]) -> tuple[Any, Any, Any, Any, Any]:
        observation, reward, terminated, truncated, info = self.env.step(actions[0])
        return (observation,), (reward,), (terminated,), (truncated,), (_consumed(info),)

    @property
    def transcripts(self) -> Sequence[Transcript]:
        try:
            return (self.env.get_wrapper_attr("transcript"),)
        except AttributeError as error:
            raise SubjectError(
                "expected an environment with a transcript, got none; do: give it a `transcript` property that returns "
                "a search_gym.Transcript"
            ) from error


class _Many:
    """A native vector environment."""

    def __init__(self, env: SearchVectorEnv) -> None:
        self.env = env
        self.num_slots = env.num_envs
        self.max_chunk = _max_length(env.single_action_space)
        self.codec = env.task.codec

    def reset(self, seed: int) -> Sequence[TokenIds]:
        return self.env.reset(seed=seed)[0]

    def step(self, actions: Sequence[TokenIds]) -> tuple[Any, Any, Any, Any, Any]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        return observations, rewards, terminated, truncated, _consumed(infos)

    @property
    def transcripts(self) -> Sequence[Transcript]:
        return self.env.transcripts


def _make_slots(make_env: MakeEnv) -> _Single | _Many:
    env = make_env()
    if isinstance(env, SearchVectorEnv):
        return _Many(env)
    if not isinstance(env, gym.Env):
        raise SubjectError(
            f"expected a gymnasium.Env or a SearchVectorEnv from make_env, got {type(env).__name__}; "
            "do: check one environment of the vector"
        )
    return _Single(env)


def _max_length(space: Any) -> int:
    try:
        return int(space.max_length)
    except AttributeError as error:
        raise SubjectError(
            f"expected an action space of token sequences with a max_length, got {space}; "
            "do: use search_gym.TokenSequence"
        ) from error


def _consumed(info: dict[str, Any]) -> Any:
    if "num_consumed" not in info:
        raise SubjectError(
            f"expected info['num_consumed'], how many tokens of the chunk belong to the episode, got {sorted(info)}"
        )
    return info["num_consumed"]


def _sampler(codec: TokenCodec | None) -> TurnSampler:
    """Turns as an unpractised policy writes them: tags, whole and mangled, words, EOS and any id."""
    if codec is None:
        raise SubjectError("expected sample_turn for an environment without a codec, got None; do: pass one")
    texts = (*TAG_STRINGS, "<search>who</search>", "<answer>it</answer>", "who is it?", "</sea", "rch>", "<", "\n\n")
    pieces = [codec.encode(text) for text in texts]
    pieces = [ids for ids in (*pieces, np.array([codec.eos_id])) if ids.size]

    def draw(rng: np.random.Generator) -> TokenIds:
        chosen = [pieces[i] for i in rng.integers(len(pieces), size=int(rng.integers(1, 4)))]
        return np.concatenate([*chosen, rng.integers(codec.vocab_size, size=int(rng.integers(3)))]).astype(np.int64)

    return draw


def _play(
    slots: _Single | _Many, streams: Sequence[TokenIds], seed: int, most: int, sizes: np.random.Generator | None = None
) -> list[_Play]:
    """Play each slot's stream until its episode ends or a stream that is needed is used up.

    Chunks have ``most`` tokens, or between 1 and ``most`` if ``sizes`` draws their number.
    """
    plays = [
        _Play(stream, np.asarray(prompt).tolist()) for stream, prompt in zip(streams, slots.reset(seed), strict=True)
    ]
    while running := [play for play in plays if not play.is_over]:
        if any(play.position >= len(play.stream) for play in running):
            break  # a slot that goes on needs a token at every step
        chunks: list[TokenIds] = []
        for play in plays:
            size = most if sizes is None else int(sizes.integers(1, most + 1))
            chunks.append(_NOTHING if play.is_over else play.stream[play.position :][: min(size, slots.max_chunk)])
        for play, chunk, observation, reward, terminated, truncated, num_consumed in zip(
            plays, chunks, *slots.step(chunks), strict=True
        ):
            if play.is_over:
                continue
            if not 1 <= num_consumed <= len(chunk):
                raise InvarianceError(
                    f"expected between 1 and {len(chunk)} tokens of a chunk to be consumed, got {num_consumed}; "
                    "do: count the tokens that were appended to the transcript"
                )
            play.position += int(num_consumed)
            said = _Event(play.position, np.asarray(observation).tolist(), float(reward), terminated, truncated)
            if any(said[1:]):
                play.events.append(said)
            play.is_over = bool(terminated or truncated)
    for play, transcript in zip(plays, slots.transcripts, strict=True):
        if not isinstance(transcript, Transcript):
            raise SubjectError(f"expected a search_gym.Transcript as transcript, got {type(transcript).__name__}")
        play.transcript = transcript
        _require_provenance(play)
    return plays


def _require_provenance(play: _Play) -> None:
    ids, mask = play.transcript.token_ids, play.transcript.loss_mask
    observed = play.prompt + [i for event in play.events for i in event.observation]
    for who, expected, got in (
        ("sampled", play.stream[: play.position].tolist(), ids[mask].tolist()),
        ("observed", observed, ids[~mask].tolist()),
    ):
        if expected != got:
            at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
            where = f"they differ from number {at} on" if at is not None else "one continues the other"
            raise InvarianceError(
                f"expected the transcript to hold the {len(expected)} ids that were {who}, got {len(got)}, and "
                f"{where}; do: append the ids themselves, of actions as they came and of observations as they went"
            )


def _compare(one: _Play, other: _Play, place: str, partition: str) -> None:
    """Require that two plays of one stream agree, as far as both went."""
    advice = "let a turn end with the token that ends it, keep the tokens after it for the next chunk"
    if one.prompt != other.prompt:
        raise SubjectError(
            f"expected the same prompt after reset(seed=…) with the same seed, got two in {place}; "
            "do: draw the question from the environment's np_random"
        )
    # In a vector environment a partition may reach the end of one slot's stream sooner than of another's.
    common = min(one.position, other.position)
    events = [[event for event in play.events if event.position <= common] for play in (one, other)]
    for first, second in zip(*events, strict=False):
        if first != second:
            raise InvarianceError(
                f"expected {place} to go on in the same way in chunks of one token and in {partition}, "
                f"got {_describe(first)}; and {_describe(second)}; do: {advice}"
            )
    if len(events[0]) != len(events[1]):
        longer = max(events, key=len)
        raise InvarianceError(
            f"expected {place} to say the same in chunks of one token and in {partition}, got {len(events[0])} and "
            f"{len(events[1])} steps that said something; only one had {_describe(longer[min(map(len, events))])}; "
            f"do: {advice}"
        )
    if one.position == other.position and one.transcript != other.transcript:
        raise InvarianceError(
            f"expected {place} to leave the same transcript in chunks of one token and in {partition}, got "
            f"{one.transcript!r} and {other.transcript!r}; do: {advice}"
        )


def _describe(event: _Event) -> str:
    shown = ", ".join(map(str, event.observation[:8])) + ", …" * (len(event.observation) > 8)
    observed = f"{len(event.observation)} tokens observed ({shown})" if event.observation else "nothing observed"
    end = " and the end" if event.terminated or event.truncated else ""
    return f"after token {event.position} {observed}, reward {event.reward:g}{end}"
