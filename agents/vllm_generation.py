"""vLLM as an engine, for models that outgrow one GPU. Experimental: it has been tested against a stand-in that offers
what is used here of vLLM's ``LLM`` and ``LLMEngine``, not yet against vLLM on a GPU.

Token ids go in, token ids and log-probabilities come out; nothing is tokenized again. Every turn is a request of its
own whose prompt is all that its slot holds, so prefix caching (Kwon et al. 2023, arXiv 2309.06180) must stay on: then
only the new tokens are computed. `VllmGenerator.start` hands the policy's weights over. Random numbers are vLLM's own:
the same seed gives the same episode, but not that of the other engines.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from agents.generation import SampledTurn, check_turns
from agents.sampling import check_top_p
from agents.stop_tags import CLOSING_TAGS
from search_gym.codec import HFCodec, TokenCodec, TokenIds
from search_gym.errors import OptionError
from search_gym.plugins import require
from search_gym.tags import closes_turn

_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int64)


class VllmGenerator:
    """A `agents.generation.Generator` around ``vllm.LLM``.

    Arguments:
        model, codec, temperature, greedy, top_p: see `agents.generation.CachedGenerator`.
        llm: a ``vllm.LLM`` that was made with ``enable_prefix_caching=True``, ``enable_sleep_mode=True`` and
            ``logprobs_mode="processed_logprobs"``, in this process (``VLLM_ENABLE_V1_MULTIPROCESSING=0``). By default
            one is made from ``model`` at the first `start`, with ``options`` for its constructor, such as
            ``tensor_parallel_size`` or ``gpu_memory_utilization``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TokenCodec,
        *,
        temperature: float = 1.0,
        greedy: bool = False,
        top_p: float = 1.0,
        llm: Any = None,
        **options: Any,
    ) -> None:
        """Raises OptionError: sampling with ``top_p`` below 1, or a model with adapters; MissingDependencyError."""
        check_top_p(top_p)
        if top_p < 1 and not greedy:
            raise OptionError(
                f"expected top_p=1 with vLLM, whose log-probabilities are else those of the truncated distribution, "
                f"got {top_p}; do: use the fast engine"
            )
        if any("lora_" in name for name, _ in model.named_parameters()):
            raise OptionError("expected a model without adapters, got LoRA's; do: use the fast engine")
        self.model, self.codec = model, codec
        self._temperature, self._greedy = temperature, greedy
        is_padded = codec.vocab_size < model.config.get_text_config().vocab_size
        self._allowed = list(range(codec.vocab_size)) if is_padded else None
        self._vllm = require("vllm", extra="vllm")
        self._llm, self._options = llm, options
        self._is_asleep = False

    def start(self, num_slots: int, seed: int, first_episode: int = 0) -> None:
        self._load_weights()
        self._held: list[TokenIds] = [_NO_TOKENS] * num_slots
        self._episodes = [first_episode + slot for slot in range(num_slots)]
        self._num_turns = [0] * num_slots
        self._unfed = [0] * num_slots
        self._seed = seed
        self._slot_of: dict[str, int] = {}
        self._num_requests = 0

    def place(self, slots: Sequence[int], episodes: Sequence[int]) -> None:
        self.drop(slots)
        for slot, episode in zip(slots, episodes, strict=True):
            self._episodes[slot], self._num_turns[slot] = episode, 0

    def extend(self, slots: Sequence[int], token_ids: Sequence[TokenIds]) -> None:
        for slot, ids in zip(slots, token_ids, strict=True):
            self._held[slot] = np.concatenate((self._held[slot], ids))

    def drop(self, slots: Sequence[int]) -> None:
        running = [name for name, slot in self._slot_of.items() if slot in set(slots)]
        if running:
            self._llm.llm_engine.abort_request(running)
        for name in running:
            del self._slot_of[name]
        for slot in slots:
            self._held[slot] = _NO_TOKENS

    def sample(self, slots: Sequence[int], max_tokens: Sequence[int]) -> list[SampledTurn]:
        self.begin(slots, max_tokens)
        found: dict[int, SampledTurn] = {}
        while len(found) < len(slots):
            found.update(self.advance())
        return [found[slot] for slot in slots]

    def begin(self, slots: Sequence[int], max_tokens: Sequence[int]) -> None:
        limits = check_turns(slots, max_tokens, [self._held[slot].size for slot in slots])
        for slot, limit in zip(slots, limits.tolist(), strict=True):
            name = f"{self._num_requests}-{slot}"
            self._num_requests += 1
            prompt = self._vllm.TokensPrompt(prompt_token_ids=self._held[slot].tolist())
            self._llm.llm_engine.add_request(name, prompt, self._sampling(slot, limit))
            self._slot_of[name] = slot

    def advance(self) -> list[tuple[int, SampledTurn]]:
        found: list[tuple[int, SampledTurn]] = []
        while self._slot_of and not found:
            for output in self._llm.llm_engine.step():
                if output.finished and output.request_id in self._slot_of:
                    slot = self._slot_of.pop(output.request_id)
                    turn = self._turn(output.outputs[0])
                    self._held[slot] = np.concatenate((self._held[slot], turn.token_ids))
                    found.append((slot, turn))
        return found

    def release(self) -> None:
        """Give the memory of cache and weights back, until the next `start`."""
        if self._llm is not None and not self._is_asleep:
            self._llm.sleep(level=1)
            self._is_asleep = True

    def _sampling(self, slot: int, limit: int) -> Any:
        key = (self._seed, self._episodes[slot], self._num_turns[slot])
        self._num_turns[slot] += 1
        return self._vllm.SamplingParams(
            temperature=0.0 if self._greedy else self._temperature,
            seed=int(np.random.default_rng(key).integers(2**31)),
            max_tokens=limit,
            logprobs=0,
            stop=list(CLOSING_TAGS),
            include_stop_str_in_output=True,
            stop_token_ids=[self.codec.eos_id],
            ignore_eos=True,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            allowed_token_ids=self._allowed,
        )

    def _turn(self, completion: Any) -> SampledTurn:
        """What was sampled, up to the first token whose text closes the turn."""
        ids = np.asarray(completion.token_ids, dtype=np.int64)
        logprobs = np.array(
            [at[token].logprob for at, token in zip(completion.logprobs, ids.tolist(), strict=True)], dtype=np.float32
        )
        length = next((n for n in range(1, ids.size) if closes_turn(self.codec.decode(ids[:n]))), ids.size)
        return SampledTurn(ids[:length], logprobs[:length])

    def _load_weights(self) -> None:
        if self._llm is None:
            self._llm = self._make()
        if self._is_asleep:
            self._llm.wake_up()
            self._is_asleep = False
        weights = [(name, weight.detach()) for name, weight in self.model.state_dict().items()]

        def load(served: Any) -> None:
            served.load_weights(weights)

        self._llm.apply_model(load)
        self._llm.reset_prefix_cache()

    def _make(self) -> Any:
        """A ``vllm.LLM`` for ``model``, through a folder, since it reads configuration and tokenizer from one."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if not isinstance(self.codec, HFCodec):
            raise OptionError("expected a codec with a Hugging Face tokenizer, got another; do: use the fast engine")
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            self.codec.tokenizer.save_pretrained(folder)
            return self._vllm.LLM(
                model=folder,
                dtype=str(self.model.dtype).removeprefix("torch."),
                enable_prefix_caching=True,
                enable_sleep_mode=True,
                logprobs_mode="processed_logprobs",
                **self._options,
            )
