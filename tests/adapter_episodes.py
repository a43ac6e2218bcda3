"""Episodes that every adapter plays, in ids that no re-tokenisation gives back, and what the environment makes of them.

Only what `search_gym` itself needs is imported here, because each adapter's tests run where its library is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import search_gym  # noqa: F401, registers the environments
from search_gym.codec import ByteCodec
from search_gym.env import SearchEnv
from search_gym.episode import StepResult

ENV_ID = "search_gym/SearchQA-v0"
OPTIONS: dict[str, Any] = {
    "questions": "tinywiki",
    "codec": "byte",
    "prompt_fn": "tinywiki",
    "max_turns": 3,
    "top_k": 2,
}
CODEC = ByteCodec()
# Bytes that are no text: decoding and encoding again gives others.
THOUGHT = [*CODEC.encode("<think>").tolist(), 0xFF, 0xC3, *CODEC.encode("</think>").tolist()]


def run_page(name: str) -> dict[str, Any]:
    """Run the Python blocks of ``docs/adapters/<name>.md`` in the working directory; the names that they define."""
    page = Path(__file__).parents[1] / "docs" / "adapters" / f"{name}.md"
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    return names


def make_env() -> SearchEnv:
    """The environment that every adapter's is compared with."""
    env = gym.make(ENV_ID, **OPTIONS).unwrapped
    assert isinstance(env, SearchEnv)
    return env


def turns_of(env: SearchEnv, index: int) -> list[list[int]]:
    """A search, a turn that is invalid and the right answer, the first two with a thought that is no text."""
    question = env.task.questions[index]
    return [
        [*THOUGHT, *CODEC.encode(f"<search>{question.text}</search>").tolist()],
        [*THOUGHT, CODEC.eos_id],
        CODEC.encode(f"<answer>{question.answers[0]}</answer>").tolist(),
    ]


@dataclass(frozen=True)
class Expected:
    """What happens in ``turns`` of question ``index``."""

    index: int
    question_id: str
    prompt: list[int]
    turns: list[list[int]]
    results: list[StepResult]
    token_ids: list[int]
    loss_mask: list[bool]
    info_mask: list[bool]

    @property
    def response_ids(self) -> list[int]:
        """What comes after the prompt."""
        return self.token_ids[len(self.prompt) :]

    @property
    def response_mask(self) -> list[bool]:
        """Which of those were sampled."""
        return self.loss_mask[len(self.prompt) :]


def expect(index: int, env: SearchEnv | None = None) -> Expected:
    """Play question ``index`` in `SearchEnv`."""
    env = env or make_env()
    turns = turns_of(env, index)
    prompt, info = env.reset(options={"question_index": index})
    results: list[Any] = [env.step(np.array(turn)) for turn in turns]
    transcript = env.transcript
    assert [result[4]["event"] for result in results] == ["search", "invalid", "answer"]
    assert results[-1][1] == 1.0
    sampled = transcript.token_ids[transcript.loss_mask]
    assert sampled.tolist() == [i for turn in turns for i in turn]
    assert CODEC.encode(CODEC.decode(sampled)).tolist() != sampled.tolist()
    return Expected(
        index,
        info["question_id"],
        prompt.tolist(),
        turns,
        results,
        transcript.token_ids.tolist(),
        transcript.loss_mask.tolist(),
        transcript.info_mask.tolist(),
    )
