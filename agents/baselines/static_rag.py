"""Static retrieval-augmented generation: one search with the question itself, before the policy says anything.

The documents stand in the prompt in the form in which a searching agent gets them, and only an answer counts. With
``--num-documents`` as large as the agent's ``top_k`` this compares one search with searching while reasoning; with
``top_k * max_turns`` it gets as many documents as the agent may see, so that what remains is the choice of queries.

``python -m agents.baselines.static_rag`` takes the options of ``agents.ppo`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from agents import ppo
from agents.config import run_command
from agents.policy import CausalLMWithValueHead
from agents.runlog import RunLog
from agents.tasks import EnvConfig, make_envs, reuse
from search_gym import SearchVectorEnv, TokenCodec
from search_gym.errors import OptionError
from search_gym.tags import INFORMATION_START, encode_information
from search_gym.task import Task


class StaticRAGPrompt:
    """The task's prompt, then an information block with the documents that the question's own text finds.

    All questions of ``task`` are searched for in one call, here. A block has at most ``max_tokens`` tokens; longer
    documents are cut as the environment cuts them.
    """

    def __init__(self, task: Task, *, num_documents: int, max_tokens: int) -> None:
        """Raises RetrievalError: the retriever failed. OptionError: ``num_documents`` is below 1."""
        self.task = task
        self.max_tokens = max_tokens
        texts = list(dict.fromkeys(question.text for question in task.questions))
        found = replace(task, top_k=num_documents, on_retrieval_error="raise").retrieve(texts)
        self.documents = dict(zip(texts, found, strict=True))

    def __call__(self, question: str) -> str:
        """The prompt of a question of the task.

        Raises:
            OptionError: another question.
        """
        if question not in self.documents:
            raise OptionError(f"expected a question of the task, got {question!r}; do: build the prompt with its task")
        documents = self.documents[question]
        return (
            self.task.prompt_fn(question)
            + encode_information(INFORMATION_START, documents, self.task.codec, self.max_tokens)[1]
        )


def static_rag_envs(
    config: EnvConfig, codec: TokenCodec, num_envs: int, *, num_documents: int | None = None
) -> SearchVectorEnv:
    """Slots whose prompt holds ``num_documents`` documents (by default ``config.top_k``) and which only take an answer.

    The room for documents grows with their number: ``config.max_observation_tokens`` for each ``config.top_k``.
    """
    count = config.top_k if num_documents is None else num_documents
    searching = make_envs(config, codec, 1)
    prompt_fn = StaticRAGPrompt(
        searching.task,
        num_documents=count,
        max_tokens=config.max_observation_tokens * max(1, count // config.top_k),
    )
    return make_envs(config, codec, num_envs, max_turns=0, prompt_fn=prompt_fn, **reuse(searching))


def static_rag_max_envs(config: EnvConfig, codec: TokenCodec, num_envs: int) -> SearchVectorEnv:
    """`static_rag_envs` with as many documents as a searching agent may see."""
    return static_rag_envs(config, codec, num_envs, num_documents=config.top_k * max(1, config.max_turns))


@dataclass(frozen=True)
class StaticRAGConfig(ppo.PPOConfig):
    """Static RAG, trained by PPO."""

    run_dir: Path = Path("runs/static-rag")
    num_documents: int | None = None
    """Documents in the prompt; by default as many as one search of the agent returns."""


def train(config: StaticRAGConfig, *, log: RunLog | None = None) -> CausalLMWithValueHead:
    """Train a policy by PPO on prompts with ``config.num_documents`` documents; see ``agents.ppo.train``."""
    return ppo.train(config, make_envs=partial(static_rag_envs, num_documents=config.num_documents), log=log)


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    presets = {}
    for name, preset in ppo.PRESETS.items():
        options = {field.name: getattr(preset, field.name) for field in fields(preset) if field.name != "run_dir"}
        presets[name] = StaticRAGConfig(**options)
    run_command(train, presets, prog="python -m agents.baselines.static_rag", doc=__doc__, args=args)


if __name__ == "__main__":
    main()
