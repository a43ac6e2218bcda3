"""Four tasks whose right answer is known, each a step harder than the one before, and a model that can begin them.

1. *Constant target*: one word is paid, whatever is asked.
2. *Target in the prompt*: the word that the prompt names is paid.
3. *One search*: the answer is in the document that the prompt's word finds, and nowhere else.
4. *Two searches*: the answer is in the document that the first document's word finds.

An algorithm that fails the first has its sign or its credit wrong, the second its conditioning, the third its masks or
its turns, the fourth its credit over more than one observation.

Random weights never write a tag, so the model has babbled before: a few seconds of random words, random queries and
random answers, copied from anywhere in the context. It has seen no solved question, and its documents are random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoint import save_policy
from agents.config import OptimizerConfig, TrainConfig
from agents.generation import CachedGenerator
from agents.policy import CausalLMPolicy, CausalLMWithValueHead
from agents.pretrain import IGNORED_LABEL, pad_rows
from agents.rollout import Rollout, collect
from agents.tasks import EnvConfig
from agents.tiny import TinyConfig, TinyForCausalLM
from search_gym import Document, Outcome, Question, SearchVectorEnv, TokenCodec, exact_match, tinywiki
from search_gym.episode import Episode
from search_gym.limits import Limits

CODEC = tinywiki.codec()
WORDS = CODEC.tokens[-64:]
COLOURS = WORDS[:4]
TOKENS = 4
"""Tokens of a turn in which words are paid, and most of one that searches or answers."""


class Chain:
    """Finds the document that is named by a query; it holds the next word of a fixed circle through all ``WORDS``."""

    def __init__(self, *, is_silent: bool = False) -> None:
        circle = np.random.default_rng(0).permutation(len(WORDS))
        self.next_word = {WORDS[a]: WORDS[b] for a, b in zip(circle, np.roll(circle, 1), strict=True)}
        self.is_silent = is_silent

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        def find(word: str) -> list[Document]:
            is_found = word in self.next_word and not self.is_silent
            return [Document(word, word, self.next_word[word])] if is_found else []

        return [find(query) for query in queries]

    def follow(self, word: str, steps: int) -> str:
        for _ in range(steps):
            word = self.next_word[word]
        return word


def share_of_right_words(outcome: Outcome) -> float:
    """The part of a turn that is the word asked for."""
    return outcome.text.split().count(outcome.answers[0]) / TOKENS


@dataclass(frozen=True)
class Probe:
    """A task, and what tells a policy that has solved it from one that has not.

    ``before`` and ``after``: mean rewards that the model is below and above. ``searches`` each episode needs that many.
    """

    name: str
    questions: tuple[Question, ...]
    reward_fn: Callable[[Outcome], float]
    searches: int
    updates: int
    before: float
    after: float

    def make_envs(
        self, config: EnvConfig, codec: TokenCodec, num_envs: int, *, silent: bool = False
    ) -> SearchVectorEnv:
        """What trainers call; with ``silent``, no search finds anything."""
        return SearchVectorEnv(
            num_envs,
            questions=self.questions,
            retriever=Chain(is_silent=silent),
            codec=codec,
            reward_fn=self.reward_fn,
            prompt_fn=str,
            top_k=1,
            max_turns=self.searches,
            max_turn_tokens=TOKENS,
        )


def _say(name: str, answer: Callable[[str], str]) -> Probe:
    questions = tuple(Question(word, f"also {word}", (answer(word),)) for word in COLOURS)
    # Random words are right one time in four; 0.9 of 256 tokens are then as good as impossible.
    return Probe(name, questions, share_of_right_words, 0, updates=20, before=0.4, after=0.9)


def _find(name: str, searches: int, updates: int) -> Probe:
    chain = Chain()
    questions = tuple(Question(word, f"Who {word} ?", (chain.follow(word, searches),)) for word in WORDS)
    # One of 64 words is right, and the model does not know which.
    return Probe(name, questions, exact_match, searches, updates=updates, before=0.25, after=0.85)


PROBES = (
    _say("constant target", lambda word: COLOURS[0]),
    _say("target in the prompt", lambda word: word),
    _find("one search", 1, updates=20),
    _find("two searches", 2, updates=25),
)


def make_base(directory: Path) -> Path:
    """A model that babbles, saved where ``TrainConfig.model`` can name it."""
    save_policy(directory, CausalLMWithValueHead(_babbler(), vocab_size=CODEC.vocab_size), CODEC)
    return directory


@cache
def _babbler() -> TinyForCausalLM:
    """Trained for a few seconds on what `_babble` writes, once in a process; only its own tokens have a loss."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = TinyForCausalLM(
            TinyConfig(
                vocab_size=CODEC.vocab_size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
            )
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    updates = 200
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1 - update / updates)
    texts = _babble(np.random.default_rng(0))
    for _ in range(updates):
        rows = [next(texts) for _ in range(24)]
        token_ids, attention_mask = pad_rows([ids for ids, _ in rows], CODEC.pad_id)
        sampled, _ = pad_rows([mask.astype(np.int64) for _, mask in rows], 0)
        labels = token_ids.masked_fill(sampled == 0, IGNORED_LABEL)
        loss = model(token_ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def _babble(rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    """Token ids and loss masks of episodes in which every choice is random, and nothing is what was asked for."""

    def pick(*weighted: tuple[float, Sequence[str]]) -> str:
        held = [(weight, words) for weight, words in weighted if words]
        weights = np.array([weight for weight, _ in held])
        words = held[int(rng.choice(len(held), p=weights / weights.sum()))][1]
        return words[int(rng.integers(len(words)))]

    while True:
        is_word_task = rng.random() < 0.3
        word = pick((1, COLOURS if is_word_task else WORDS))
        text = f"also {word}" if is_word_task else f"Who {word} ?"
        limits = Limits(max_turns=3, max_turn_tokens=TOKENS)
        episode = Episode(Question("babble", text, ("",)), CODEC, limits, exact_match, str)
        episode.start()
        found: list[str] = []
        seen = [word]
        while not episode.is_finished:
            latest = found[-1:]
            if is_word_task:
                turn = episode.begin(CODEC.encode(" ".join(pick((1, COLOURS)) for _ in range(TOKENS))))
            elif rng.random() < (0.6 if len(found) < 3 else 0.0):
                turn = episode.begin(CODEC.encode(f"<search> {pick((6, latest), (3, seen), (1, WORDS))} </search>"))
            else:
                turn = episode.begin(CODEC.encode(f"<answer> {pick((6, latest), (3, seen), (1, WORDS))} </answer>"))
            documents = None
            if episode.needs_documents(turn):
                found.append(WORDS[rng.integers(len(WORDS))])
                seen += found[-1:]
                documents = [Document("random", turn.content, found[-1])]
            episode.finish(turn, documents)
            if is_word_task:
                break
        yield episode.transcript.token_ids, episode.transcript.loss_mask


def probe_config(default: TrainConfig, base: Path, run_dir: Path, **options: Any) -> Any:
    """The ``"default"`` preset of an algorithm on the scale of the probes."""
    rates = OptimizerConfig(learning_rate=options.pop("learning_rate", 2e-3), warmup_updates=0)
    values = {
        "compute": replace(default.compute, device="cpu"),
        "updates": 3,
        "rollouts_per_update": 64,
        "minibatch_size": 16,
        "kl_coef": 0.0,
        **options,
    }
    return replace(default, model=str(base), run_dir=run_dir, optimizer=rates, **values)


def play(policy: CausalLMPolicy, probe: Probe, *, silent: bool = False, repeats: int = 1) -> list[Rollout]:
    """Sampled episodes, one or more for each question."""
    questions = np.repeat(np.arange(len(probe.questions)), repeats)
    envs = probe.make_envs(EnvConfig(), CODEC, len(questions), silent=silent)
    return collect(envs, CachedGenerator(policy.model, CODEC), questions, seed=12345)
