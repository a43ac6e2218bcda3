"""Self-RAG's inference: every document opens a branch, and the segment that the policy itself likes best goes on.

See ``agents.baselines.reflection`` for what a segment looks like, and ``agents.baselines.self_rag`` for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from agents.baselines import critique
from agents.baselines.reflection import search
from agents.forward import forward_model
from agents.generation import CachedGenerator, SampledTurn
from agents.policy import token_logprobs
from agents.rollout import Rollout, TurnEvent
from agents.supervised import Example, pad
from search_gym import Document, TokenCodec
from search_gym.codec import TokenIds
from search_gym.episode import Episode
from search_gym.errors import OptionError
from search_gym.tags import Turn
from search_gym.task import Task

ROWS_PER_FORWARD = 32
NUM_JUDGEMENTS = 4


@dataclass(frozen=True)
class Weights:
    """How much each judgement counts in the score of a segment; the paper's values."""

    relevant: float = 1.0
    """The document is relevant to the question."""
    supported: float = 1.0
    """The document supports the segment."""
    useful: float = 0.5
    """The segment answers the question."""


class Judgement(NamedTuple):
    """The probability of "yes" against "no" of each judgement."""

    relevant: float
    supported: float
    useful: float


def segment_score(mean_logprob: float, judgement: Judgement, weights: Weights) -> float:
    """How good a segment y_t after document d is (arXiv 2310.11511, equations 3 and 4):

        f(y_t, d) = p(y_t | x, d, y_<t) + sum over judgements G of w_G s_G,    s_G = p(yes) / (p(yes) + p(no))

    p is the geometric mean of the tokens' probabilities, exp(``mean_logprob``), as in the authors' code, so that a
    long segment is as likely as a short one.
    """
    paper = critique.Weights(weights.relevant, weights.supported, weights.useful)
    return critique.segment_score(mean_logprob, *judgement, paper)


class ReflectionReader:
    """Finds the judgements in a turn, and what the policy held of their opposites."""

    def __init__(self, model: PreTrainedModel, codec: TokenCodec) -> None:
        """Raises OptionError: the vocabulary has no token "yes", or none "no"."""
        self.model = model
        self.codec = codec
        texts = {i: codec.decode([i]) for i in range(codec.vocab_size)}
        by_text = {text: i for i, text in texts.items()}
        self._yes_no: dict[int, tuple[int, int]] = {}
        for text, i in by_text.items():
            if text.strip() == "yes" and (opposite := by_text.get(text.replace("yes", "no"))) is not None:
                self._yes_no |= {i: (i, opposite), opposite: (i, opposite)}
        if not self._yes_no:
            raise OptionError('expected a vocabulary with the tokens "yes" and "no", got one without; do: add them')

    def places(self, turn_ids: Sequence[int]) -> list[int]:
        """Where the four judgements of a later turn stand in its ids: the first and the last three of its thought.

        The list is empty when the turn is not of that form.
        """
        text_end = len(turn_ids)
        for end in range(1, len(turn_ids) + 1):
            if "</think>" in self.codec.decode(turn_ids[:end]):
                text_end = end
                break
        found = [i for i, token in enumerate(turn_ids[:text_end]) if token in self._yes_no]
        return [found[0], *found[-3:]] if len(found) >= NUM_JUDGEMENTS else []

    @torch.no_grad()
    def judge(self, contexts: Sequence[TokenIds], turns: Sequence[SampledTurn]) -> list[Judgement]:
        """The judgements of each turn, which follows its context; all 0 for one that is not of the form."""
        judgements: list[Judgement] = []
        for start in range(0, len(turns), ROWS_PER_FORWARD):
            stop = start + ROWS_PER_FORWARD
            judgements += self._judge(contexts[start:stop], turns[start:stop])
        return judgements

    def _judge(self, contexts: Sequence[TokenIds], turns: Sequence[SampledTurn]) -> list[Judgement]:
        rows = [np.concatenate((context, turn.token_ids)) for context, turn in zip(contexts, turns, strict=True)]
        nothing = [Example(row, np.zeros(len(row), dtype=np.bool_)) for row in rows]
        token_ids, attention_mask, _ = pad(nothing, self.codec.pad_id, self.model.device)
        columns = torch.arange(token_ids.shape[1], device=self.model.device)
        logits = forward_model(self.model, token_ids, attention_mask, columns=columns)["logits"]
        places = [
            [len(context) + place for place in self.places(turn.token_ids.tolist())][:3]
            for context, turn in zip(contexts, turns, strict=True)
        ]
        asked = [token_ids.clone(), token_ids.clone()]
        for row, found in enumerate(places):
            for place in found:
                for ids, choice in zip(asked, self._yes_no[int(token_ids[row, place])], strict=True):
                    ids[row, place] = choice
        # The logits are those of the tokens as they were written; only the token that is asked about differs.
        yes, no = (token_logprobs(logits, ids, 1.0, vocab_size=self.codec.vocab_size) for ids in asked)
        share = (yes - no).sigmoid()
        return [
            Judgement(*(float(share[row, place]) for place in found)) if found else Judgement(0.0, 0.0, 0.0)
            for row, found in enumerate(places)
        ]


@dataclass(eq=False)
class _Play:
    """A question that is being answered: ``options`` are the branches that write next, ``episode`` the one kept."""

    question_index: int
    episode: Episode
    options: list[Episode] = field(default_factory=list)
    turn: SampledTurn = field(default_factory=lambda: SampledTurn(_NO_TOKENS, _NO_LOGPROBS))
    events: list[TurnEvent] = field(default_factory=list)
    logprobs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    reward: float = 0.0
    terminated: bool = False
    num_searches: int = 0
    sampled_tokens: int = 0

    def write(self, option: Episode, turn: SampledTurn) -> None:
        """Go on with ``option``, whose next turn is ``turn``."""
        self.episode, self.turn = option, turn

    def begin(self, episode: Episode) -> Turn:
        return episode.begin(self.turn.token_ids)

    def finish(self, episode: Episode, turn: Turn, documents: list[Document] | None) -> None:
        _, self.reward, self.terminated, _, info = episode.finish(turn, documents)
        self.num_searches = info["num_searches"]

    def rollout(self) -> Rollout:
        transcript = self.episode.transcript
        return Rollout(
            question=self.episode.question,
            question_index=self.question_index,
            token_ids=transcript.token_ids,
            spans=transcript.spans,
            loss_mask=transcript.loss_mask,
            logprobs=np.concatenate(self.logprobs),
            reward=self.reward,
            terminated=self.terminated,
            truncated=not self.terminated,
            turns=tuple(self.events),
            num_searches=self.num_searches,
        )


_NO_TOKENS: TokenIds = np.zeros(0, dtype=np.int64)
_NO_LOGPROBS: npt.NDArray[np.float32] = np.zeros(0, dtype=np.float32)


class Answered(NamedTuple):
    """The episode of the branches that were kept, and how many tokens all branches of its question sampled."""

    rollout: Rollout
    sampled_tokens: int


def answer_questions(
    model: PreTrainedModel, task: Task, question_index: Sequence[int], weights: Weights, *, wave: int = 64
) -> list[Answered]:
    """Answer questions greedily and in order, ``wave`` at a time, with a branch for each of ``task.top_k`` documents.

    A branch is an episode of the environment whose searches each show one document.
    """
    answered: list[Answered] = []
    generator = CachedGenerator(model, task.codec, greedy=True)
    reader = ReflectionReader(model, task.codec)
    for start in range(0, len(question_index), wave):
        plays = [_Play(i, task.episode(i)) for i in question_index[start : start + wave]]
        for play in plays:
            play.episode.start()
            play.options = [play.episode]
        while active := [play for play in plays if not play.episode.is_finished]:
            _write(active, generator, reader, weights)
            _act(active, task)
        answered += [Answered(play.rollout(), play.sampled_tokens) for play in plays]
    return answered


def _write(plays: Sequence[_Play], generator: CachedGenerator, reader: ReflectionReader, weights: Weights) -> None:
    """Let every branch of every play write its turn, and keep the best branch of each, the first of equals."""
    options = [option for play in plays for option in play.options]
    contexts = [option.transcript.token_ids for option in options]
    slots = range(len(options))
    generator.start(len(options), seed=0)
    generator.extend(slots, contexts)
    turns = generator.sample(slots, [option.turn_tokens_left for option in options])
    judgements = reader.judge(contexts, turns)
    scores = [
        segment_score(float(turn.logprobs.mean()), judgement, weights)
        for turn, judgement in zip(turns, judgements, strict=True)
    ]
    start = 0
    for play in plays:
        branches = range(start, start + len(play.options))
        best = max(branches, key=scores.__getitem__)
        play.write(options[best], turns[best])
        play.sampled_tokens += sum(len(turns[i].token_ids) for i in branches)
        start = branches.stop


def _act(plays: Sequence[_Play], task: Task) -> None:
    """Carry out the chosen turn of every play; a search opens a branch for each document that it finds."""
    begun = [(play, play.begin(play.episode)) for play in plays]
    queries = [turn.content for play, turn in begun if play.episode.needs_documents(turn)]
    found = iter(search(task, queries))
    for play, turn in begun:
        play.events.append(TurnEvent(turn.event, turn.content))
        play.logprobs.append(play.turn.logprobs)
        if not play.episode.needs_documents(turn):
            play.finish(play.episode, turn, None)
            play.options = [play.episode]
            continue
        play.options = []
        for shown in [[document] for document in next(found)] or [[]]:
            option = task.episode(play.question_index)
            option.restore(play.episode.to_state())
            play.finish(option, play.begin(option), shown)
            play.options.append(option)
        # A branch whose document does not fit into the context is out; when none fits, so is the question.
        play.options = [option for option in play.options if not option.is_finished] or play.options[-1:]
        play.episode = play.options[0]
