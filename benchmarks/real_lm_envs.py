"""The environments of `benchmarks.real_lm`: searching, answering at once, and documents in the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

from agents.baselines.static_rag import StaticRAGPrompt
from agents.tasks import EnvConfig
from search_gym import Document, Question, SearchVectorEnv, TokenCodec
from search_gym.episode import Episode, StepResult
from search_gym.errors import OptionError, RetrievalError
from search_gym.retrievers import Retriever
from search_gym.rewards import Outcome, em_score, f1_score, normalize_answer
from search_gym.tags import Turn, search_r1_prompt
from search_gym.task import Task

Method = Literal["search", "direct", "rag1", "rag3"]
METHODS: tuple[Method, ...] = get_args(Method)
NUM_DOCUMENTS = {"rag1": 1, "rag3": 3}

_TOKENS_BESIDE_A_PASSAGE = 40  # its title, "Doc 1(Title: ...)", and its share of the tags


def reward(outcome: Outcome, *, repeat_penalty: float) -> float:
    """The mean of exact match and F1, less ``repeat_penalty`` for each query that was asked before in the episode."""
    score = (em_score(outcome.answer, outcome.answers) + f1_score(outcome.answer, outcome.answers)) / 2
    queries = [normalize_answer(turn.content) for turn in outcome.turns if turn.event == "search"]
    return score - repeat_penalty * (len(queries) - len(set(queries)))


class UnseenEpisode(Episode):
    """An episode in which no search shows a document again; the next ones of the ranking take its place."""

    __slots__ = ("_num_shown", "_seen")

    def __init__(self, *args: Any, num_shown: int) -> None:
        super().__init__(*args)
        self._num_shown = num_shown
        self._seen: set[str] = set()

    def finish(self, turn: Turn, documents: Sequence[Document] | RetrievalError | None = None) -> StepResult:
        """As in `Episode`; of ``documents`` the first ``num_shown`` that are new are shown."""
        if documents is None or isinstance(documents, RetrievalError):
            return super().finish(turn, documents)
        unseen = [document for document in documents if document.doc_id not in self._seen][: self._num_shown]
        result = super().finish(turn, unseen)
        self._seen.update(document.doc_id for document in unseen)
        return result


@dataclass(frozen=True, slots=True)
class UnseenTask(Task):
    """A task whose episodes show ``num_shown`` unseen documents a search; ``top_k`` is how many are fetched."""

    num_shown: int = 1

    def episode(self, question_index: int) -> Episode:
        """See `Task`."""
        plain = Task.episode(self, question_index)
        return UnseenEpisode(
            plain.question, self.codec, self.limits, self.reward_fn, self.prompt_fn, num_shown=self.num_shown
        )


@dataclass(frozen=True)
class Worlds:
    """Makes the slots of a method, over one retriever, for the questions of training or for the held-out ones."""

    retriever: Retriever
    method: Method
    env: EnvConfig
    unseen: bool = True
    repeat_penalty: float = 0.0
    prompt_fn: Callable[[str], str] = search_r1_prompt

    def make(self, questions: Sequence[Question], codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
        """``num_envs`` slots that ask ``questions``."""
        env = self.env
        options: dict[str, Any] = {
            "questions": questions,
            "retriever": self.retriever,
            "codec": codec,
            "reward_fn": partial(reward, repeat_penalty=self.repeat_penalty),
            "prompt_fn": self.prompt_fn,
            "max_turn_tokens": env.max_turn_tokens,
            "max_observation_tokens": env.max_observation_tokens,
            "max_context_tokens": env.max_context_tokens,
        }
        if self.method == "search":
            envs = SearchVectorEnv(num_envs, **options, top_k=env.top_k, max_turns=env.max_turns)
            if self.unseen:
                parts = {field.name: getattr(envs.task, field.name) for field in fields(envs.task)}
                parts |= {"top_k": env.top_k * env.max_turns, "num_shown": env.top_k}
                envs.task = UnseenTask(**parts)
            return envs
        if self.method in NUM_DOCUMENTS:
            task = SearchVectorEnv(1, **options).task
            options["prompt_fn"] = StaticRAGPrompt(
                task, num_documents=NUM_DOCUMENTS[self.method], max_tokens=env.max_observation_tokens
            )
        return SearchVectorEnv(num_envs, **options, max_turns=0)

    def make_envs(self, questions: Sequence[Question]) -> Callable[[EnvConfig, TokenCodec, int], SearchVectorEnv]:
        """`make` as trainers call it."""
        return lambda _, codec, num_envs: self.make(questions, codec, num_envs)


_ASKED = "In which country was the engineer who built the Brask Mill born"
_FOUND = '\n\n<information>Doc 1(Title: "Brask Mill") The Brask Mill was built in 1874 by Oda Lind.</information>\n\n'
_FOUND_NEXT = '\n\n<information>Doc 1(Title: "Oda Lind") Oda Lind (born in Karsia) was an engineer.</information>\n\n'
_EXAMPLES: dict[Method, str] = {
    "search": (
        "<think> I need to find who built the Brask Mill. </think>\n<search> Brask Mill </search>"
        + _FOUND
        + "<think> Oda Lind built it. I need to find where she was born. </think>\n<search> Oda Lind </search>"
        + _FOUND_NEXT
        + "<think> Oda Lind was born in Karsia. </think>\n<answer> Karsia </answer>\n\n"
    ),
    "direct": "<think> Oda Lind built it. She was born in Karsia. </think>\n<answer> Karsia </answer>\n\n",
    "rag1": _FOUND_NEXT + "<think> Oda Lind was born in Karsia. </think>\n<answer> Karsia </answer>\n\n",
    "rag3": _FOUND_NEXT + "<think> Oda Lind was born in Karsia. </think>\n<answer> Karsia </answer>\n\n",
}


def prompt_with_example(method: Method) -> Callable[[str], str]:
    """Search-R1's prompt after an invented question in that prompt and the episode of ``method`` that answers it."""
    example = search_r1_prompt(_ASKED) + _EXAMPLES[method]
    return lambda question: example + search_r1_prompt(question)


def env_config(method: Method, *, passage_tokens: int, top_k: int, max_searches: int, turn_tokens: int) -> EnvConfig:
    """The limits of a method: room for its documents, its turns and a prompt of 700 tokens.

    Raises:
        OptionError: a method of another name, or no room for a document or a search.
    """
    if method not in METHODS or min(passage_tokens, top_k, max_searches, turn_tokens) < 1:
        raise OptionError(
            f"expected a method among {METHODS} and positive sizes, got {method!r} and "
            f"{(passage_tokens, top_k, max_searches, turn_tokens)}; do: correct them"
        )
    documents = NUM_DOCUMENTS.get(method, top_k)
    observation = documents * (passage_tokens + _TOKENS_BESIDE_A_PASSAGE) + 16
    searches = max_searches if method == "search" else 0
    prompt = 700 + (observation if method in NUM_DOCUMENTS else 0)
    return EnvConfig(
        questions="real text",
        split="train",
        retriever="bm25",
        top_k=documents,
        max_turns=searches,
        max_turn_tokens=turn_tokens,
        max_observation_tokens=observation,
        max_context_tokens=prompt + searches * observation + (searches + 1) * turn_tokens,
    )
