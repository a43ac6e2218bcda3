"""The ``environment_factory`` of `search_gym.adapters.trl`: the environment as tools of a chat model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym

import search_gym  # noqa: F401, registers the environments
from search_gym import tags
from search_gym.errors import OptionError
from search_gym.task import Task
from search_gym.wrappers import TextTurns


class SearchTools:
    """The environment as the tools of a chat model, one object for each episode that runs at a time.

    TRL offers ``search`` and ``answer`` to the model and calls `get_reward` at the end. The model's calls are written
    into the environment's episode as the text of whole turns, so its limits and its reward hold; what TRL trains on is
    its own record of the model's ids, not the environment's transcript. TRL goes on after an answer until the model
    writes a message without a call: what is called then is told that the episode is over.
    """

    def __init__(self, env: TextTurns) -> None:
        self._env = env
        self._reward = 0.0
        self._is_over = False

    def reset(self, question_index: int | None = None, prompt: Any = None, **row: Any) -> str | None:
        """Start the episode of a dataset's row, which names its question by index, or by the text of its last message.

        A row whose last message is empty gets a random question, whose text is returned to be put there.

        Raises:
            OptionError: there is no such question.
        """
        self._reward, self._is_over = 0.0, False
        text = "" if prompt is None else prompt if isinstance(prompt, str) else prompt[-1]["content"]
        questions = self._env.get_wrapper_attr("task").questions
        if question_index is None and text:
            question_index = next((i for i, question in enumerate(questions) if question.text == text), None)
            if question_index is None:
                raise OptionError(
                    f"expected the text of a question of the environment, got {text!r:.80}; do: add question_index"
                )
        options = None if question_index is None else {"question_index": int(question_index)}
        self._env.reset(options=options)
        return None if text else self._env.get_wrapper_attr("episode").question.text

    def search(self, query: str) -> str:
        """Search for documents.

        Args:
            query: What to look for.

        Returns:
            The documents that were found.
        """
        return self._turn("search", query)

    def answer(self, answer: str) -> str:
        """Give the final answer to the question.

        Args:
            answer: The answer in a few words.

        Returns:
            That the answer has been received.
        """
        return self._turn("answer", answer)

    def get_reward(self) -> float:
        """The environment's reward; 0 for an episode that has not ended."""
        return self._reward

    def _turn(self, event: str, content: str) -> str:
        if self._is_over:
            return "The episode is over."
        observation, reward, terminated, truncated, _ = self._env.step(
            f"<{event}> {tags.neutralise(content)} </{event}>"
        )
        self._reward += float(reward)
        self._is_over = terminated or truncated
        if terminated:
            return "The answer has been received."
        if truncated:
            return "The episode is over: too many turns or tokens."
        return observation.strip().removeprefix("<information>").removesuffix("</information>").strip()


def make_environment_factory(env_id: str = "search_gym/SearchQA-v0", **options: Any) -> Callable[[], SearchTools]:
    """What ``GRPOTrainer(environment_factory=...)`` takes: makes `SearchTools` over ``gym.make(env_id, **options)``.

    Questions, retriever and codec are built once and shared by all of them. Leave the codec at its default: the model's
    own tokenizer is TRL's business here.
    """
    task: Task = gym.make(env_id, **options).get_wrapper_attr("task")
    shared = {**options, **dict.fromkeys(("corpus", "question_options", "retriever_options"))}
    shared |= {"questions": task.questions, "retriever": task.retriever, "codec": task.codec}

    def make() -> SearchTools:
        return SearchTools(TextTurns(gym.make(env_id, **shared)))

    return make
