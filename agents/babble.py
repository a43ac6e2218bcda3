"""Unlabelled text of tiny worlds: whole episodes in which every choice is random.

It plays the part of the text that a language model has read before reinforcement learning: it shows the words, the
tags, the environment's own sentences and that text is often copied from what stands before it. It shows no solved
question: questions, queries, documents and answers are drawn without regard to one another, and no document states
what its episode's question asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np

from search_gym import tinywiki
from search_gym.codec import WordCodec
from search_gym.episode import Episode, Limits
from search_gym.questions import Question
from search_gym.retrievers import Document
from search_gym.rewards import exact_match
from search_gym.tinywiki import RELATIONS, TYPES, YEARS, names, random_name, random_question, sentence
from search_gym.tinywiki.world import num_phrasings
from search_gym.transcript import Transcript

SPLIT = "pretrain"
MAX_THOUGHT_TOKENS = 6
MAX_SPAN_TOKENS = 5

_RELATION_NAMES = tuple(relation.name for relation in RELATIONS)
_SEARCHES = (0.05, 0.25, 0.35, 0.20, 0.15)
_HOPS = (0.35, 0.40, 0.15, 0.10)
_OTHER_KINDS = ("comparison", "intersection", "yes/no")
_OTHER_SHARE = 0.15
_RELATED_SHARE = 0.5

_FORMS = {
    "nested": "<think> {thought} <{tag}> {content} </{tag}>",
    "no think": "<{tag}> {content} </{tag}>",
    "not opened": "<think> {thought} </think> {content} </{tag}>",
    "not closed": "<think> {thought} </think> <{tag}> {content} <eos>",
    "mismatched": "<think> {thought} </think> <{tag}> {content} </{other}>",
    "stray words": "<think> {thought} </think> {stray} <{tag}> {content} </{tag}>",
}
_CLEAN_FORM = "<think> {thought} </think> <{tag}> {content} </{tag}>"


@cache
def _type_of() -> dict[str, str]:
    return {name: entity_type for entity_type in TYPES for name in names(SPLIT, entity_type)}


@dataclass
class _Mentions:
    """What a text names, in order and with repetitions."""

    texts: list[list[str]] = field(default_factory=list)
    entities: list[str] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def read(self, text: str, codec: WordCodec) -> None:
        tokens = [codec.tokens[i] for i in codec.encode(text.rstrip("?.\n"))]
        pairs = [" ".join(pair) for pair in pairwise(tokens)]
        self.texts.append(tokens)
        self.entities += [pair for pair in pairs if pair in _type_of()]
        self.relations += [token for token in tokens if token in _RELATION_NAMES]
        self.values += [token for token in tokens if token in YEARS]


@dataclass
class _Context:
    """What an episode's text has named so far: in the question, in all documents, in those of the last search."""

    question: _Mentions
    documents: _Mentions = field(default_factory=_Mentions)
    latest: _Mentions = field(default_factory=_Mentions)


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _first_of(rng: np.random.Generator, *sources: tuple[float, Sequence[str]]) -> str:
    """One item of a source chosen by its weight among those that hold anything."""
    held = [(weight, items) for weight, items in sources if items]
    weights = np.array([weight for weight, _ in held])
    return _pick(rng, held[int(rng.choice(len(held), p=weights / weights.sum()))][1])


def _relation(rng: np.random.Generator, context: _Context) -> str:
    question, documents = context.question.relations, context.documents.relations
    return _first_of(rng, (0.5, question), (0.2, documents), (0.3, _RELATION_NAMES))


def _span(rng: np.random.Generator, context: _Context, max_tokens: int = MAX_SPAN_TOKENS) -> str:
    """A few tokens in a row of a text in the context."""
    texts = context.question.texts + context.documents.texts
    tokens = texts[int(rng.integers(len(texts)))]
    length = int(rng.integers(1, min(max_tokens, len(tokens)) + 1))
    start = int(rng.integers(len(tokens) - length + 1))
    return " ".join(tokens[start : start + length])


def _words(rng: np.random.Generator) -> str:
    """Names and relations that need not belong together."""
    return " ".join(
        random_name(rng, SPLIT).split()[int(rng.integers(2))] if rng.random() < 0.5 else _pick(rng, _RELATION_NAMES)
        for _ in range(int(rng.integers(1, 4)))
    )


def _query(rng: np.random.Generator, context: _Context) -> str:
    question, latest, documents = context.question.entities, context.latest.entities, context.documents.entities
    new = [name for name in latest if name not in question]
    name = _first_of(rng, (0.25, question), (0.55, new), (0.1, documents), (0.1, [random_name(rng, SPLIT)]))
    relation = _relation(rng, context)
    kind = rng.choice(5, p=(0.5, 0.15, 0.2, 0.05, 0.1))
    if kind == 0:
        return _pick(rng, (f"{name} {relation}", f"{relation} of {name}", f"{relation} {name}"))
    return (name, _span(rng, context), relation, _words(rng))[kind - 1]


def _answer(rng: np.random.Generator, context: _Context) -> str:
    question, documents = context.question.entities, context.documents.entities
    name = _first_of(rng, (0.4, question), (0.5, documents), (0.1, [random_name(rng, SPLIT)]))
    year = _pick(rng, context.documents.values or YEARS)
    kind = rng.choice(4, p=(0.75, 0.05, 0.1, 0.1))
    return (name, year, _span(rng, context, 3), _pick(rng, ("yes", "no", "unknown")))[kind]


def _thought(rng: np.random.Generator, context: _Context, tag: str) -> str:
    opening = "I need to find" if tag == "search" else "I know the answer."
    kind = rng.choice(4, p=(0.6, 0.2, 0.1, 0.1))
    if kind == 0:
        return opening
    if kind == 1:
        return f"{opening} {_span(rng, context, MAX_THOUGHT_TOKENS - 1)}"
    return _span(rng, context, MAX_THOUGHT_TOKENS) if kind == 2 else _words(rng)


def _turn(rng: np.random.Generator, context: _Context, tag: str, sloppy: float) -> str:
    """The text of one turn; a share ``sloppy`` of them has a missing, mismatched or misplaced tag."""
    form = _FORMS[_pick(rng, tuple(_FORMS))] if rng.random() < sloppy else _CLEAN_FORM
    return form.format(
        tag=tag,
        other="answer" if tag == "search" else "search",
        thought=_thought(rng, context, tag),
        content=_query(rng, context) if tag == "search" else _answer(rng, context),
        stray=_words(rng),
    )


def _document(rng: np.random.Generator, context: _Context) -> Document:
    """A random fact, at times about an entity of the context, never about what the question asks."""
    question = context.question
    known = question.entities + context.documents.entities
    while True:
        subject = _pick(rng, known) if rng.random() < _RELATED_SHARE else random_name(rng, SPLIT)
        choices = [relation for relation in RELATIONS if relation.subject_type == _type_of()[subject]]
        relation = choices[int(rng.integers(len(choices)))]
        if subject not in question.entities or relation.name not in question.relations:
            break
    object_type = relation.object_type
    value = _pick(rng, YEARS) if object_type == "year" else random_name(rng, SPLIT, object_type)
    phrasing = int(rng.integers(num_phrasings(relation.name)))
    return Document("random", subject, sentence(subject, relation.name, value, phrasing))


def other_questions(seed: int) -> tuple[str, ...]:
    """Texts of questions that are not bridges, from the pretraining worlds of ``seed``."""
    return tuple(question.text for question in tinywiki.load(SPLIT, kinds=_OTHER_KINDS, seed=seed))


def random_episode(rng: np.random.Generator, codec: WordCodec, others: Sequence[str], sloppy: float) -> Transcript:
    """One babbled episode, run through the environment's own `Episode`.

    Its question is a random bridge or one of ``others``; each turn is sloppy with probability ``sloppy``; each search
    gets the same number of documents, 1 to 3.
    """
    if others and rng.random() < _OTHER_SHARE:
        text = _pick(rng, others)
    else:
        text = random_question(rng, SPLIT, 1 + int(rng.choice(len(_HOPS), p=_HOPS)))
    context = _Context(_Mentions())
    context.question.read(text, codec)
    episode = Episode(Question("random", text, ()), codec, Limits(), exact_match, tinywiki.prompt)
    episode.start()
    searches_left = int(rng.choice(len(_SEARCHES), p=_SEARCHES))
    top_k = int(rng.integers(1, 4))
    while not episode.is_finished:
        tag = "search" if searches_left > 0 else "answer"
        turn = episode.begin(codec.encode(_turn(rng, context, tag, sloppy), allow_special=True))
        documents = None
        if episode.needs_documents(turn):
            documents = [_document(rng, context) for _ in range(top_k)]
            searches_left -= 1
        episode.finish(turn, documents)
        if documents:
            context.latest = _Mentions()
            for document in documents:
                context.latest.read(document.text, codec)
                context.documents.read(document.text, codec)
    return episode.transcript
