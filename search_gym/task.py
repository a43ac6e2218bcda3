"""What an environment is about: questions, retriever, codec, limits and reward, resolved once, shared by all slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from search_gym import plugins, retrievers, tags
from search_gym import questions as question_sets
from search_gym.codec import ByteCodec, HFCodec, TokenCodec
from search_gym.corpus import load_corpus
from search_gym.episode import Episode, PromptFn
from search_gym.errors import CodecError, OptionError, PartialRetrievalError, QuestionError, RetrievalError
from search_gym.limits import Limits
from search_gym.questions import Question, QuestionSet
from search_gym.retrievers import Document, Retriever
from search_gym.rewards import RewardFn, exact_match

OnRetrievalError = Literal["raise", "observe"]


@dataclass(frozen=True, slots=True)
class Task:
    """The resolved parts of an environment.

    ``retrieval_timeout`` in seconds; None waits for ever, without the cost of a thread.
    """

    questions: Sequence[Question]
    retriever: Retriever
    codec: TokenCodec
    reward_fn: RewardFn = exact_match
    prompt_fn: PromptFn = tags.search_r1_prompt
    limits: Limits = field(default_factory=Limits)
    top_k: int = 3
    on_retrieval_error: OnRetrievalError = "raise"
    retrieval_timeout: float | None = None

    def __post_init__(self) -> None:
        """Raises OptionError, QuestionError or CodecError when a part cannot be used."""
        if not isinstance(self.questions, Sequence):
            raise OptionError(f"expected a sequence of questions or a name, got {type(self.questions).__name__}")
        if not self.questions:
            raise QuestionError("expected at least one question, got an empty set; do: check the split and the file")
        if not isinstance(self.questions[0], Question):
            raise QuestionError(
                f"expected Question objects, got {self.questions[0]!r:.80}; do: Question(id, text, answers)"
            )
        if not isinstance(self.retriever, Retriever):
            raise OptionError(f"expected a retriever with search(queries, k), got {type(self.retriever).__name__}")
        if not isinstance(self.codec, TokenCodec):
            raise CodecError(
                f"expected a TokenCodec, got {type(self.codec).__name__}; do: wrap a Hugging Face tokenizer in HFCodec"
            )
        if self.top_k < 1:
            raise OptionError(f"expected top_k >= 1, got {self.top_k}")
        if self.on_retrieval_error not in ("raise", "observe"):
            raise OptionError(f"expected on_retrieval_error 'raise' or 'observe', got {self.on_retrieval_error!r}")
        if self.retrieval_timeout is not None and not self.retrieval_timeout > 0:
            raise OptionError(f"expected retrieval_timeout > 0 seconds or None, got {self.retrieval_timeout}")
        start = tags.CLOSE_THINK + tags.INFORMATION_START
        tags.encode_information(start, [], self.codec, self.limits.max_observation_tokens)

    def episode(self, question_index: int) -> Episode:
        """A new episode of question ``question_index``.

        Raises:
            OptionError: the index is out of range.
        """
        if not 0 <= question_index < len(self.questions):
            raise OptionError(f"expected question_index in [0, {len(self.questions)}), got {question_index}")
        return Episode(self.questions[question_index], self.codec, self.limits, self.reward_fn, self.prompt_fn)

    def retrieve(self, queries: Sequence[str]) -> Sequence[list[Document] | RetrievalError]:
        """Documents for each query, from one call of the retriever.

        With ``on_retrieval_error="observe"`` a failure is returned in the place of the documents of each query that it
        concerns: all of them, unless it is a `PartialRetrievalError`.

        Raises:
            RetrievalError: the retriever raised, took too long, or did not return one list of documents per query.
        """
        try:
            return self._checked(self._search(queries), len(queries))
        except RetrievalError as error:
            if self.on_retrieval_error == "raise":
                raise
            if isinstance(error, PartialRetrievalError) and len(error.results) == len(queries):
                return error.results
            return [error] * len(queries)

    def _search(self, queries: Sequence[str]) -> object:
        try:
            if self.retrieval_timeout is None:
                return self.retriever.search(queries, self.top_k)
            return self._search_in_time(queries, self.retrieval_timeout)
        except RetrievalError:
            raise
        except Exception as error:  # the boundary to foreign code: whatever it raises becomes one type of ours
            raise RetrievalError(f"{self._name} raised {type(error).__name__}: {error}") from error

    def _search_in_time(self, queries: Sequence[str], seconds: float) -> object:
        result: Future[object] = Future()

        def search() -> None:
            try:
                result.set_result(self.retriever.search(queries, self.top_k))
            except BaseException as error:  # handed over, to be raised in the caller's thread
                result.set_exception(error)

        # A daemon, so that a retriever that never returns cannot keep the process from ending.
        thread = Thread(target=search, name="search_gym-retrieval", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise RetrievalError(
                f"expected {self._name} to answer within {seconds} s, got no answer to {len(queries)} queries; "
                "do: raise retrieval_timeout or check the retriever's server"
            )
        return result.result()

    def _checked(self, results: object, num_queries: int) -> list[list[Document]]:
        if not isinstance(results, list) or len(results) != num_queries:
            got = f"{len(results)} lists" if isinstance(results, list) else f"{results!r:.200}"
            raise RetrievalError(f"expected a list of {num_queries} lists of documents from {self._name}, got {got}")
        for documents in results:
            if not isinstance(documents, list) or len(documents) > self.top_k:
                raise RetrievalError(
                    f"expected a list of at most {self.top_k} documents per query from {self._name}, "
                    f"got {documents!r:.200}"
                )
            for document in documents:
                if not isinstance(document, Document):
                    raise RetrievalError(f"expected Document objects from {self._name}, got {document!r:.200}")
        return results

    @property
    def _name(self) -> str:
        return f"the retriever {type(self.retriever).__name__}"


def make_task(
    *,
    questions: str | Sequence[Question],
    retriever: str | Mapping[str, Any] | Retriever = "bm25",
    codec: str | TokenCodec = "byte",
    corpus: str | Path | Sequence[Document] | None = None,
    split: str = "test",
    question_options: Mapping[str, Any] | None = None,
    retriever_options: Mapping[str, Any] | None = None,
    prompt_fn: str | PromptFn = tags.search_r1_prompt,
    limits: Limits,
    **parts: Any,
) -> Task:
    """Resolve every part that is given by name; ``parts`` are the remaining fields of `Task`."""
    options = dict(question_options or {})
    if isinstance(questions, str):
        if questions.startswith("jsonl:") and isinstance(corpus, (str, Path)):
            options, corpus = {"corpus": corpus, **options}, None
        questions = question_sets.load(questions, split, **options)
    elif options:
        raise OptionError(
            "expected question_options only for questions named by a string, got both objects and options"
        )
    if isinstance(retriever, (str, Mapping)):
        retriever = retrievers.load(retriever, _documents(corpus, questions), **(retriever_options or {}))
    elif retriever_options or corpus is not None:
        raise OptionError("expected corpus and retriever_options only for a retriever to build, got an object")
    return Task(
        questions=questions,
        retriever=retriever,
        codec=load_codec(codec) if isinstance(codec, str) else codec,
        prompt_fn=_load_prompt(prompt_fn) if isinstance(prompt_fn, str) else prompt_fn,
        limits=limits,
        **parts,
    )


def _documents(corpus: str | Path | Sequence[Document] | None, questions: Sequence[Question]) -> Sequence[Document]:
    """The documents to build a retriever over; none for those that have their own."""
    if isinstance(corpus, (str, Path)):
        return load_corpus(corpus)
    if corpus is None:
        return questions.documents if isinstance(questions, QuestionSet) else ()
    return corpus


def load_codec(name: str) -> TokenCodec:
    """A codec by name.

    ``name`` is "byte", "tinywiki", "package.module:attribute", or a Hugging Face directory, hub name or GGUF file.
    """
    if name == "byte":
        return ByteCodec()
    if name == "tinywiki":
        from search_gym import tinywiki

        return tinywiki.codec()
    if ":" in name and not Path(name).exists():
        return plugins.find_outside(name)()
    return HFCodec.from_pretrained(name)


def _load_prompt(name: str) -> Callable[[str], str]:
    """A prompt function by name: "search_r1", "tinywiki", or "package.module:attribute"."""
    if name == "search_r1":
        return tags.search_r1_prompt
    if name == "tinywiki":
        from search_gym import tinywiki

        return tinywiki.prompt
    return plugins.find_outside(name)
