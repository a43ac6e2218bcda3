"""Prompting methods as policies of the environment: a method asks a language model, then writes turns in the grammar.

A method is a generator function. What it yields is either a request to the model (`complete`, `score_options`) or a
turn (`search`, `answer`, `write`), which the environment answers as it answers any policy: same retriever, same
``top_k``, same number of turns, same reward. `play_wave` runs many episodes side by side, so that the requests of all
of them reach the model together and their searches reach the retriever together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np

from agents.rollout import Rollout, TurnEvent
from agents.transcripts import describe
from search_gym import SearchVectorEnv, TokenCodec
from search_gym.codec import TokenIds
from search_gym.completion import Completer, Completion, Prompt
from search_gym.errors import CodecError, OptionError, SearchGymError
from search_gym.tags import closes_turn, neutralise

T = TypeVar("T")

_HEAD = r'^Doc \d+\(Title: "(.*?)"\)(?: |$)'
_DOCUMENT = re.compile(rf"{_HEAD}(.*?)(?={_HEAD}|\Z)", re.MULTILINE | re.DOTALL)
_INFORMATION = re.compile(r"<information>(.*)</information>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Complete:
    """Asks for a completion of each prompt."""

    prompts: tuple[Prompt, ...]
    stop: tuple[str, ...] = ()
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Asks how likely each option is after each prompt."""

    prompts: tuple[Prompt, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn: ``thought``, which is shortened if it does not fit, then ``action``, which is not."""

    action: str
    thought: str = ""


Step = Complete | Score | Turn
Script = Generator[Step, Any, T]


class TextAgent(Protocol):
    """A prompting method."""

    def prompt(self, question: str) -> str:
        """What the transcript shows as the prompt: the message of the method's requests about ``question``."""
        ...

    def play(self, question: str) -> Script[NoReturn]:
        """One episode, from the first turn on; it ends from outside, when the environment ends it."""
        ...


def complete(*prompts: Prompt, stop: Sequence[str] = (), logprobs: bool = False) -> Script[list[Completion]]:
    """``yield from`` it for a completion of each of ``prompts``; see `Completer.complete`."""
    return (yield Complete(prompts, tuple(stop), logprobs))


def score_options(*prompts: Prompt, options: Sequence[str]) -> Script[list[tuple[float, ...]]]:
    """``yield from`` it for the log-probabilities of ``options`` after each of ``prompts``."""
    return (yield Score(prompts, tuple(options)))


def search(query: str, thought: str = "") -> Script[str]:
    """``yield from`` it to search; gives the text that the environment appends."""
    return (yield Turn(f"<search> {neutralise(query).strip()} </search>", neutralise(thought)))


def answer(text: str, thought: str = "") -> Script[str]:
    """``yield from`` it to answer, which ends the episode."""
    return (yield Turn(f"<answer> {neutralise(text).strip()} </answer>", neutralise(thought)))


def write(text: str) -> Script[str]:
    """``yield from`` it to write a turn as it is; without a closed search or answer it is an invalid one."""
    return (yield Turn(text))


def read_documents(observation: str) -> list[tuple[str, str]]:
    """Title and text of each document that the environment shows in ``observation``."""
    found = _INFORMATION.search(observation)
    return [] if found is None else [(title, text.strip()) for title, text, _ in _DOCUMENT.findall(found[1])]


def encode_turn(turn: Turn, codec: TokenCodec, max_tokens: int) -> TokenIds:
    """The ids (n,) int64 of ``turn``; one that does not close itself ends with EOS.

    The thought loses its end until n <= ``max_tokens``, and all of itself before the action loses anything.
    """

    def encode(length: int) -> TokenIds:
        thought = turn.thought[:length].strip()
        ids = codec.encode((f"<think> {thought} </think>\n" if thought else "") + turn.action)
        return ids if closes_turn(turn.action) else np.append(ids, codec.eos_id)

    ids = encode(len(turn.thought))
    if len(ids) <= max_tokens:
        return ids
    low, high, best = 0, len(turn.thought), encode(0)
    while low < high:
        middle = (low + high + 1) // 2
        candidate = encode(middle)
        if len(candidate) <= max_tokens:
            low, best = middle, candidate
        else:
            high = middle - 1
    return best


@dataclass(frozen=True, slots=True)
class TextEpisode:
    """A finished episode. The tokens of ``rollout`` spell the turns; what the model sampled is in ``completions``."""

    rollout: Rollout
    completions: tuple[Completion, ...]


@dataclass
class _Playing:
    """An episode that goes on: its script, what the script waits for, and what has happened."""

    script: Script[NoReturn]
    step: Step
    completions: list[Completion] = field(default_factory=list)
    turns: list[TurnEvent] = field(default_factory=list)
    reward: float = 0.0
    num_retrieval_failures: int = 0

    def go_on(self, result: Any) -> None:
        if isinstance(self.step, Complete):
            self.completions += result
        try:
            self.step = self.script.send(result)
        except StopIteration as end:
            raise SearchGymError("expected a method that plays until its episode ends, got one that returned") from end


def play_wave(
    agent: TextAgent,
    completer: Completer,
    envs: SearchVectorEnv,
    question_index: Sequence[int],
    *,
    max_tokens: int,
    on_finished: Callable[[TextEpisode], None] = lambda episode: None,
) -> list[TextEpisode]:
    """One episode for each of at most ``envs.num_envs`` questions, in their order; the first wave fills all slots.

    ``max_tokens`` bounds each completion. ``on_finished`` is told of every episode as soon as it ends.

    Raises:
        CompletionError: the model failed; episodes that have ended were told. RetrievalError: the retriever failed.
        OptionError: no question, or more than slots. CodecError: the codec loses tags.
    """
    num_slots = len(question_index)
    if not 1 <= num_slots <= envs.num_envs:
        raise OptionError(f"expected 1 to {envs.num_envs} questions, got {num_slots}; do: cut them into waves")
    mask = np.arange(envs.num_envs) < num_slots
    envs.reset(options={"question_index": np.resize(question_index, envs.num_envs), "reset_mask": mask})
    playing: dict[int, _Playing] = {}
    for slot, episode in enumerate(envs.episodes[:num_slots]):
        script = agent.play(episode.question.text)
        playing[slot] = _Playing(script, next(script))
    finished: dict[int, TextEpisode] = {}
    while playing:
        _ask(list(playing.values()), completer, max_tokens)
        actions: list[TokenIds] = [np.zeros(0, dtype=np.int64)] * envs.num_envs
        for slot, one in playing.items():
            assert isinstance(one.step, Turn)
            actions[slot] = encode_turn(one.step, envs.task.codec, envs.episodes[slot].turn_tokens_left)
        observations, rewards, terminated, truncated, infos = envs.step(actions)
        for slot, one in list(playing.items()):
            one.turns.append(TurnEvent(str(infos["event"][slot]), str(infos["content"][slot])))
            if one.turns[-1].event == "open":
                raise CodecError(
                    f"expected a codec that gives back the tags of a turn, got {one.step!r} as "
                    f"{envs.task.codec.decode(actions[slot])!r}; do: take another codec, such as 'byte'"
                )
            one.reward += float(rewards[slot])
            one.num_retrieval_failures += int(infos["retrieval_failed"][slot])
            if terminated[slot] or truncated[slot]:
                one.script.close()
                del playing[slot]
                finished[slot] = _finish(one, envs, slot, int(question_index[slot]), int(infos["num_searches"][slot]))
                on_finished(finished[slot])
            else:
                one.go_on(envs.task.codec.decode(observations[slot]))
    return [finished[slot] for slot in range(num_slots)]


def _ask(playing: Sequence[_Playing], completer: Completer, max_tokens: int) -> None:
    """Answer requests, those of one kind together, until every episode has a turn."""
    while waiting := [(one, one.step) for one in playing if not isinstance(one.step, Turn)]:
        groups: dict[Complete | Score, list[tuple[_Playing, Complete | Score]]] = {}
        for one, request in waiting:
            groups.setdefault(replace(request, prompts=()), []).append((one, request))
        for kind, group in groups.items():
            prompts = [prompt for _, request in group for prompt in request.prompts]
            if isinstance(kind, Score):
                results: list[Any] = [*completer.option_logprobs(prompts, kind.options)]
            else:
                results = [*completer.complete(prompts, stop=kind.stop, max_tokens=max_tokens, logprobs=kind.logprobs)]
            for one, request in group:
                own, results = results[: len(request.prompts)], results[len(request.prompts) :]
                one.go_on(own)


def _finish(one: _Playing, envs: SearchVectorEnv, slot: int, index: int, num_searches: int) -> TextEpisode:
    episode, transcript = envs.episodes[slot], envs.episodes[slot].transcript
    terminated = one.turns[-1].event == "answer"
    rollout = Rollout(
        question=episode.question,
        question_index=index,
        token_ids=transcript.token_ids,
        spans=transcript.spans,
        loss_mask=transcript.loss_mask,
        logprobs=np.full(int(transcript.loss_mask.sum()), np.nan, dtype=np.float32),  # written, not sampled
        reward=one.reward,
        terminated=terminated,
        truncated=not terminated,
        turns=tuple(one.turns),
        num_searches=num_searches,
        num_retrieval_failures=one.num_retrieval_failures,
    )
    return TextEpisode(rollout, tuple(one.completions))


def describe_episode(episode: TextEpisode, codec: TokenCodec, *, label: str) -> dict[str, Any]:
    """A row of ``transcripts.jsonl`` as `agents.transcripts.describe` makes it.

    ``sampled_tokens`` counts what the model sampled in all its completions, and ``completions`` holds their texts.
    There is no ``logprobs``, because the tokens of the turns were not sampled one by one.
    """
    (row,) = describe([episode.rollout], codec, label=label)
    del row["logprobs"]
    return {
        **row,
        "question_index": episode.rollout.question_index,
        "sampled_tokens": float(sum(completion.num_tokens for completion in episode.completions)),
        "completions": [completion.text for completion in episode.completions],
    }
