"""A warm-up on form alone: how turns are written, never what is right.

What it shows, of training questions whose answers have been taken away first:

* A first search with the question, or with a run of its words.
* In most searching episodes a second search that names the title of a document that the first one found.
* As the answer what the untrained model itself reads out of the documents when two worked examples of reading stand
  before them, or else a run of words of a document. Nobody looks whether it is right.

So after it a policy writes valid turns and has seen that a search may follow another; whether an answer or a query was
a good one, it has not been told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agents.supervised import Example, example_of
from benchmarks.real_lm_envs import Method
from search_gym import Document, Question, SearchVectorEnv
from search_gym.completion import Completer, Prompt
from search_gym.errors import OptionError, RetrievalError
from search_gym.rewards import normalize_answer

SECOND_SEARCH = 0.6
WHOLE_QUESTION = 0.7
ANSWER_TOKENS = 12

READ = (
    "Passage: The Brask Mill was built in 1874 by the engineer Oda Lind on the river Tene.\n"
    "Question: who built the Brask Mill?\nAnswer: Oda Lind\n\n"
    "Passage: Velmora is a town of 4,100 people in the north of Karsia. Its mayor is Ruben Hale.\n"
    "Question: In which country is Velmora?\nAnswer: Karsia\n\n"
)
RECALL = (
    "Question: what is the capital of France?\nAnswer: Paris\n\nQuestion: who wrote the play Hamlet?\n"
    "Answer: William Shakespeare\n\n"
)
_TITLE = re.compile(r'Doc \d+\(Title: "(.*?)"\) ?(.*?)(?:</information>|$)', re.MULTILINE)


@dataclass(frozen=True)
class Script:
    """One episode to play: its searches follow from ``seed`` and what is found, and its answer is given."""

    question_index: int
    seed: int
    answer: str | None = None

    def turn(self, method: Method, question: Question, observed: Sequence[str]) -> str:
        """The text of the next turn, after the ``observed`` documents of the searches so far."""
        rng = np.random.default_rng([self.seed, self.question_index])
        num_searches = 0 if method != "search" else 2 if rng.random() < SECOND_SEARCH else 1
        first = first_query(question.text, rng)
        if len(observed) < num_searches and not observed:
            return f"<think> I need to look this up. </think>\n<search> {first} </search>"
        if len(observed) < num_searches:
            title = new_title(question.text, observed[0], rng)
            return f"<think> {title} may tell me more. </think>\n<search> {title} </search>"
        thought = "I know enough to answer." if method == "direct" else "The documents tell me enough."
        answer = self.answer if self.answer is not None else random_span(question.text, observed, rng)
        return f"<think> {thought} </think>\n<answer> {answer} </answer>"


def first_query(text: str, rng: np.random.Generator) -> str:
    """The question without its mark, or a run of three or more of its words."""
    words = text.strip().rstrip("?").split()
    if rng.random() < WHOLE_QUESTION or len(words) <= 3:
        return " ".join(words)
    length = int(rng.integers(3, len(words)))
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length])


def new_title(text: str, information: str, rng: np.random.Generator) -> str:
    """A title in the documents that the question does not name, if there is one."""
    titles = [title for title, _ in _TITLE.findall(information)]
    new = [title for title in titles if normalize_answer(title) not in normalize_answer(text)]
    chosen = new or titles or [first_query(text, rng)]
    return chosen[int(rng.integers(len(chosen)))]


def random_span(text: str, observed: Sequence[str], rng: np.random.Generator) -> str:
    """One to four words in a row of a document, or of the question where there are no documents."""
    passages = [passage for information in observed for _, passage in _TITLE.findall(information) if passage.split()]
    words = (passages[int(rng.integers(len(passages)))] if passages else text).split()
    length = min(len(words), int(rng.integers(1, 5)))
    start = int(rng.integers(len(words) - length + 1))
    return " ".join(words[start : start + length]).strip(".,;:?!()")


def blind(questions: Sequence[Question]) -> list[Question]:
    """The questions without answers and without what else is known about them."""
    return [replace(question, answers=("?",), metadata={}) for question in questions]


@dataclass(frozen=True)
class Played:
    """An episode that was played: what it found, and the example if all its turns were valid."""

    script: Script
    observed: tuple[str, ...]
    example: Example | None


def play(envs: SearchVectorEnv, method: Method, scripts: Sequence[Script]) -> list[Played]:
    """Play every script by itself; searches of one turn are made together."""
    task = envs.task
    episodes = [task.episode(script.question_index) for script in scripts]
    observed: list[list[str]] = [[] for _ in scripts]
    is_valid = [True] * len(scripts)
    for episode in episodes:
        episode.start()
    while any(not episode.is_finished for episode in episodes):
        begun = []
        for i, (script, episode) in enumerate(zip(scripts, episodes, strict=True)):
            if not episode.is_finished:
                shown = prompt_documents(task.prompt_fn, episode.question) + observed[i]
                text = script.turn(method, episode.question, shown)
                ids = task.codec.encode(text)[: episode.turn_tokens_left]
                begun.append((i, episode, episode.begin(ids)))
        searching = [(i, turn.content) for i, episode, turn in begun if episode.needs_documents(turn)]
        found = dict(zip([i for i, _ in searching], task.retrieve([query for _, query in searching]), strict=True))
        for i, episode, turn in begun:
            observation, *_ = episode.finish(turn, found.get(i))
            is_valid[i] &= turn.event in ("search", "answer")
            observed[i].append(task.codec.decode(observation))
    return [
        Played(script, tuple(seen), example_of(episode.transcript) if valid else None)
        for script, seen, episode, valid in zip(scripts, observed, episodes, is_valid, strict=True)
    ]


def prompt_documents(prompt_fn: object, question: Question) -> list[str]:
    """The documents that stand in the prompt of static retrieval, as an observation's text would hold them."""
    documents: Mapping[str, Sequence[Document] | RetrievalError] = getattr(prompt_fn, "documents", {})
    found = documents.get(question.text, ())
    if isinstance(found, RetrievalError) or not found:
        return []
    return ["\n".join(f'Doc {i}(Title: "{document.title}") {document.text}' for i, document in enumerate(found, 1))]


def reading_prompt(question: Question, shown: Sequence[str]) -> Prompt:
    """What the untrained model is asked to go on from: two examples of reading, the documents, the question."""
    passages = [f"Passage: {title}. {text}\n" for block in shown for title, text in _TITLE.findall(block)]
    text = question.text.strip().rstrip("?")
    return Prompt(f"{READ if passages else RECALL}{''.join(passages)}Question: {text}?\nAnswer:", chat=False)


def demonstrate(
    envs: SearchVectorEnv, method: Method, count: int, *, completer: Completer | None, seed: int
) -> list[Example]:
    """``count`` examples of form from the questions of ``envs``, fewer where a turn does not fit its limits.

    ``completer`` is the untrained model, whose readings are the answers; without it, and where it reads nothing, they
    are runs of words.

    Raises:
        OptionError: no example fits.
    """
    num_questions = len(envs.task.questions)
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(num_questions) for _ in range(-(-count // num_questions))])[:count]
    scripts = [Script(int(index), seed + number) for number, index in enumerate(order)]
    played = play(envs, method, scripts)
    if completer is not None:
        texts = read(completer, envs, played)
        scripts = [replace(one.script, answer=text or None) for one, text in zip(played, texts, strict=True)]
        played = play(envs, method, scripts)
    examples = [one.example for one in played if one.example is not None]
    if not examples:
        raise OptionError(
            f"expected examples of form, got none of {count} that fits; do: raise the tokens of a turn (--turn-tokens)"
        )
    return examples


def read(completer: Completer, envs: SearchVectorEnv, played: Sequence[Played]) -> list[str]:
    """What ``completer`` reads out of the documents of each episode; "" where that is nothing, or looks like a tag."""
    prompts = []
    for one in played:
        question = envs.task.questions[one.script.question_index]
        prompts.append(reading_prompt(question, [*prompt_documents(envs.task.prompt_fn, question), *one.observed]))
    completions = completer.complete(prompts, stop=("\n",), max_tokens=ANSWER_TOKENS)
    texts = [completion.text.strip().rstrip(".") for completion in completions]
    return ["" if "<" in text else text for text in texts]
