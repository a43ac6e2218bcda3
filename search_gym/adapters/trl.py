"""TRL's ``GRPOTrainer``: a ``rollout_func`` that plays whole episodes, and an ``environment_factory`` of tools.

    from search_gym.adapters.trl import episode_reward, make_rollout_func

    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=episode_reward,
        rollout_func=make_rollout_func(envs),
        train_dataset=Dataset.from_dict({"prompt": [question.text for question in envs.task.questions]}),
    )

``envs`` is a `SearchVectorEnv` whose codec is the model's tokenizer, ``HFCodec(tokenizer)``. With ``rollout_func``
what was sampled is never encoded again, masks are the transcript's, and all searches of a step are one call of the
retriever. With ``environment_factory`` the model calls tools in the form of its chat template; see `SearchTools`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from search_gym import tags
from search_gym.adapters.trl_tools import SearchTools, make_environment_factory
from search_gym.codec import TokenCodec
from search_gym.errors import OptionError
from search_gym.vector_env import SearchVectorEnv

__all__ = [
    "Generate",
    "ModelGenerator",
    "RolloutFunc",
    "Sampled",
    "SearchTools",
    "episode_reward",
    "make_environment_factory",
    "make_rollout_func",
]


class Sampled(NamedTuple):
    """Tokens that were sampled after a context, and their log-probabilities if they are known."""

    token_ids: list[int]
    logprobs: list[float] | None


Generate = Callable[[Sequence[list[int]], Sequence[int], Any], Sequence[Sampled]]
"""``generate(contexts, room, trainer)``: tokens after each context, at least one and at most ``room`` of them.

Any chunk will do: tokens beyond the end of a turn are dropped, and a turn that is still open goes on in the next call.
"""


@dataclass(slots=True)
class _Record:
    """The episode that answers prompt ``number``, so far; masks and log-probabilities of what follows its prompt."""

    number: int
    token_ids: list[int]
    num_prompt_ids: int
    env_mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = field(default_factory=list)
    reward: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)


class RolloutFunc:
    """One episode for each prompt, in the slots of ``envs``; see `make_rollout_func`."""

    def __init__(self, envs: SearchVectorEnv, generate: Generate | None = None) -> None:
        """Raises OptionError: two questions with the same text."""
        self.envs = envs
        self._generate = generate or ModelGenerator(envs.task.codec)
        self._index = {question.text: i for i, question in enumerate(envs.task.questions)}
        if len(self._index) != len(envs.task.questions):
            raise OptionError("expected questions that differ in their texts, got some twice; do: leave them out")

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[Any] | None]:
        """The columns that TRL asks for, and ``episode_reward``, ``num_searches`` and ``num_turns``.

        Raises:
            OptionError: a prompt is not the text of a question. RetrievalError: see `SearchVectorEnv.send`.
        """
        questions = [self._question(prompt) for prompt in prompts]
        records: dict[int, _Record] = {}
        finished: dict[int, _Record] = {}
        free, begun = list(range(self.envs.num_envs)), 0
        while len(finished) < len(questions):
            while free and begun < len(questions):
                slot = free.pop(0)
                records[slot] = self._begin(slot, begun, questions[begun])
                begun += 1
            for slot in self._advance(records, trainer):
                record = records.pop(slot)
                finished[record.number] = record
                free.append(slot)
        done = [finished[number] for number in range(len(questions))]
        logprobs = [record.logprobs for record in done if record.logprobs is not None]
        return {
            "prompt_ids": [record.token_ids[: record.num_prompt_ids] for record in done],
            "completion_ids": [record.token_ids[record.num_prompt_ids :] for record in done],
            "logprobs": logprobs if len(logprobs) == len(done) else None,
            "env_mask": [record.env_mask for record in done],
            "episode_reward": [record.reward for record in done],
            "num_searches": [record.info["num_searches"] for record in done],
            "num_turns": [record.info["num_turns"] for record in done],
        }

    def _question(self, prompt: Any) -> int:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        if text not in self._index:
            raise OptionError(
                f"expected a prompt that is the text of a question of the environment, got {text!r:.80}; "
                "do: give TRL the dataset {'prompt': [question.text for question in envs.task.questions]}"
            )
        return self._index[text]

    def _begin(self, slot: int, number: int, question_index: int) -> _Record:
        envs = self.envs
        mask = np.arange(envs.num_envs) == slot
        observations, _ = envs.reset(options={"question_index": question_index, "reset_mask": mask})
        prompt = observations[slot].tolist()
        return _Record(number, prompt, len(prompt))

    def _advance(self, records: Mapping[int, _Record], trainer: Any) -> list[int]:
        """Let every open episode go on by one chunk; the slots of those that have ended."""
        envs, slots = self.envs, sorted(records)
        room = [envs.episode(slot).turn_tokens_left for slot in slots]
        sampled = self._generate([records[slot].token_ids for slot in slots], room, trainer)
        actions = [np.array(chunk.token_ids, dtype=np.int64) for chunk in sampled]
        results = envs.recv(envs.send(slots, actions))
        ended = []
        for slot, chunk, result in zip(slots, sampled, results, strict=True):
            observation, reward, terminated, truncated, info = result
            record, count = records[slot], info["num_consumed"]
            record.token_ids += chunk.token_ids[:count] + observation.tolist()
            record.env_mask += [1] * count + [0] * len(observation)
            if record.logprobs is None or chunk.logprobs is None:
                record.logprobs = None
            else:
                record.logprobs += chunk.logprobs[:count] + [0.0] * len(observation)
            record.reward += reward
            record.info = info
            if terminated or truncated:
                ended.append(slot)
        return ended


def make_rollout_func(envs: SearchVectorEnv, generate: Generate | None = None) -> RolloutFunc:
    """What ``GRPOTrainer(rollout_func=...)`` takes: plays an episode for each prompt, in the slots of ``envs``.

    A prompt is the text of a question of ``envs`` (or a list of messages whose last one is it); TRL repeats each
    ``num_generations`` times. The prompt that the model reads is the environment's. ``env_mask`` is 1 where the policy
    sampled and 0 where the environment wrote; log-probabilities are 0.0 there.

    Args:
        envs: their codec speaks the ids of the trainer's tokenizer.
        generate: see `Generate`; by default the trainer's model with transformers, `ModelGenerator`.

    Raises:
        OptionError: two questions with the same text.
    """
    return RolloutFunc(envs, generate)


def episode_reward(episode_reward: Sequence[float], **_: Any) -> list[float | None]:
    """A reward function of TRL: what the environment gave."""
    return list(episode_reward)


class ModelGenerator:
    """Samples one turn with the model of the trainer, by transformers' ``generate`` and the trainer's settings.

    A row ends with the token whose text closes a tag, or with EOS. Log-probabilities are those of all tokens at the
    trainer's temperature, as TRL itself computes them, whatever ``top_p`` and the like leave to sample from.
    """

    # The longest closing tag has 9 characters, so it is spelled by no more tokens that show text.
    _WINDOW = 16

    def __init__(self, codec: TokenCodec) -> None:
        self._codec = codec

    def __call__(self, contexts: Sequence[list[int]], room: Sequence[int], trainer: Any) -> list[Sampled]:
        """Raises OptionError: the trainer generates with vLLM."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList
        from trl.models.utils import unwrap_model_for_generation  # pyright: ignore[reportMissingImports]

        if trainer.use_vllm:
            raise OptionError("expected a trainer that generates with transformers, got vLLM; do: pass generate=")
        config = copy.deepcopy(trainer.generation_config)
        config.max_new_tokens = max(room)
        width = max(map(len, contexts))
        ids = [[self._codec.pad_id] * (width - len(context)) + context for context in contexts]
        input_ids = torch.tensor(ids, device=trainer.accelerator.device)
        attention_mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts])
        watch = _Watch(width, trainer.temperature, self._closes)
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
                generation_kwargs=trainer.generation_kwargs,
            ) as model,
            torch.no_grad(),
        ):
            sequences = model.generate(
                input_ids=input_ids,
                attention_mask=attention_mask.to(input_ids.device),
                generation_config=config,
                logits_processor=LogitsProcessorList([watch.record]),
                stopping_criteria=StoppingCriteriaList([watch.has_ended]),
            )
        logprobs = watch.logprobs(sequences)
        eos_ids = {self._codec.eos_id, *trainer.eos_token_ids}
        found = []
        for row, (most, tokens) in enumerate(zip(room, sequences[:, width:].tolist(), strict=True)):
            first_eos = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), len(tokens))
            length = min(most, first_eos, watch.lengths[row] or len(tokens))
            found.append(Sampled(tokens[:length], logprobs[row][:length]))
        return found

    def _closes(self, token_ids: list[int]) -> bool:
        return tags.closes_turn(self._codec.decode(token_ids[-self._WINDOW :]))


class _Watch:
    """Looks at every step of a generation: log-probabilities of what is sampled, and where each row's turn ends."""

    def __init__(self, width: int, temperature: float, closes: Callable[[list[int]], bool]) -> None:
        self._width, self._temperature, self._closes = width, temperature, closes
        self._scores: Any = None
        self._columns: list[Any] = []
        self.lengths: list[int | None] = []

    def record(self, input_ids: Any, scores: Any) -> Any:
        """A logits processor that changes nothing; it comes before the temperature."""
        self._settle(input_ids)
        self._scores = (scores.float() / self._temperature).log_softmax(dim=-1)
        return scores

    def _settle(self, input_ids: Any) -> None:
        if self._scores is not None:
            self._columns.append(self._scores.gather(1, input_ids[:, -1:]))

    def has_ended(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """A stopping criterion: which rows have closed a tag."""
        sampled = input_ids[:, self._width :].tolist()
        self.lengths = self.lengths or [None] * len(sampled)
        for row, tokens in enumerate(sampled):
            if self.lengths[row] is None and self._closes(tokens):
                self.lengths[row] = len(tokens)
        return input_ids.new_tensor([length is not None for length in self.lengths]).bool()

    def logprobs(self, sequences: Any) -> list[list[float]]:
        """(B, n) of the sampled columns of ``sequences``."""
        import torch

        self._settle(sequences)
        return torch.cat(self._columns, dim=1).tolist()
