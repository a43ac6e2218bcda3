"""verl [0.9]: the environment as an agent loop on token ids.

Name it in the file of ``actor_rollout_ref.rollout.agent.agent_loop_config_path``,

    - name: search_gym
      _target_: search_gym.adapters.verl.SearchAgentLoop
      env_id: search_gym/SearchQA-v0
      options: {questions: nq, retriever: "http(url=http://127.0.0.1:8000)"}

and write the training data from `dataset_rows`, whose column ``agent_name`` chooses it:

    datasets.Dataset.from_list(dataset_rows(env_id, options)).to_parquet("train.parquet")

The codec is verl's tokenizer. Response ids are what the server sampled and what the environment appended, in order;
``response_mask`` is 1 on the former; log-probabilities are the server's, 0.0 on the latter; nothing is encoded again.
What the server samples after the end of a turn is dropped. The reward is the environment's, on the last token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import (  # pyright: ignore[reportMissingImports]
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
    register,
)

from search_gym.adapters._play import TINY, Play, SharedTask
from search_gym.codec import HFCodec
from search_gym.completion import TURN_ENDS
from search_gym.errors import OptionError

__all__ = ["SearchAgentLoop", "dataset_rows"]

_SHARED: dict[tuple[str, str, int], SharedTask] = {}


@register("search_gym")
class SearchAgentLoop(AgentLoopBase):
    """One episode of ``gym.make(env_id, **options)`` with verl's tokenizer as the codec, for each row of a batch."""

    def __init__(self, *args: Any, env_id: str = TINY, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Raises OptionError: ``options`` name a codec."""
        super().__init__(*args, **kwargs)
        self._shared = _shared(env_id, options, self.tokenizer)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Play the question of the row's ``question_index``, within ``rollout.response_length`` tokens.

        An episode that the response length or an aborted generation cuts short gets reward 0.

        Raises:
            OptionError: a row without a question index, or a prompt longer than ``rollout.prompt_length``.
            RetrievalError: see `search_gym.SearchEnv.step`.
        """
        if "question_index" not in kwargs:
            raise OptionError(
                f"expected a row with the column 'question_index', got {sorted(kwargs)}; do: write it from dataset_rows"
            )
        play = Play(self._shared)
        prompt = play.start(int(kwargs["question_index"])).tolist()
        if len(prompt) > self.rollout_config.prompt_length:
            raise OptionError(
                f"expected a prompt of at most rollout.prompt_length={self.rollout_config.prompt_length} tokens, "
                f"got {len(prompt)}; do: raise it, or set max_context_tokens and max_turn_tokens"
            )
        length = self.rollout_config.response_length
        request_id = uuid4().hex
        response: list[int] = []
        mask: list[int] = []
        logprobs: list[float] | None = []
        reward, num_turns, metrics, fields = 0.0, 1, {"generate_sequences": 0.0, "tool_calls": 0.0}, {}
        info: dict[str, Any] = {"num_searches": 0, "num_turns": 0, "end_reason": ""}
        while len(response) < length and not info["end_reason"]:
            room = min(play.episode.turn_tokens_left, length - len(response))
            start = time.perf_counter()
            sampled = await self.server_manager.generate(
                request_id=request_id,
                prompt_ids=prompt + response,
                sampling_params={"stop": list(TURN_ENDS), **sampling_params, "max_tokens": room},
            )
            metrics["generate_sequences"] += time.perf_counter() - start
            fields = sampled.extra_fields
            if not sampled.token_ids:
                break
            start = time.perf_counter()
            observation, reward, _, _, info = await play.step_async(list(sampled.token_ids[:room]))
            metrics["tool_calls"] += time.perf_counter() - start
            count, appended = info["num_consumed"], observation.tolist()
            response += [*sampled.token_ids[:count], *appended]
            mask += [1] * count + [0] * len(appended)
            if logprobs is not None and sampled.log_probs:
                logprobs += [*sampled.log_probs[:count], *[0.0] * len(appended)]
            else:
                logprobs = None
            num_turns += (info["event"] != "open") + bool(appended)
        extra = {"num_searches": info["num_searches"], "num_turns": info["num_turns"], "em": reward}
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=response[:length],
            response_mask=mask[:length],
            response_logprobs=None if logprobs is None else logprobs[:length],
            reward_score=reward,
            num_turns=num_turns,
            metrics=AgentLoopMetrics(**metrics),
            extra_fields={**fields, "turn_scores": [], "tool_rewards": [], "reward_extra_info": extra},
        )


def _shared(env_id: str, options: Mapping[str, Any] | None, tokenizer: Any) -> SharedTask:
    """The task of these options and this tokenizer; the same one for all episodes of a worker."""
    from omegaconf import OmegaConf  # pyright: ignore[reportMissingImports]

    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(options or {})), resolve=True)
    if "codec" in plain:
        raise OptionError(f"expected options without a codec, which is verl's tokenizer, got {plain['codec']!r}")
    key = env_id, repr(sorted(plain.items())), id(tokenizer)
    if key not in _SHARED:
        _SHARED[key] = SharedTask.of(env_id, {**plain, "codec": HFCodec(tokenizer)})
    return _SHARED[key]


def dataset_rows(env_id: str = TINY, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """A row for each question, in the layout of verl's data sets."""
    task = SharedTask.of(env_id, options).task
    return [
        {
            "data_source": "search_gym",
            "agent_name": "search_gym",
            "prompt": [{"role": "user", "content": task.prompt_fn(question.text)}],
            "ability": "search",
            "reward_model": {"style": "rule", "ground_truth": list(question.answers)},
            "question_index": index,
            "extra_info": {"index": index, "question_id": question.question_id},
        }
        for index, question in enumerate(task.questions)
    ]
