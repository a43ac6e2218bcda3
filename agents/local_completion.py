"""The `Completer` of a causal language model in this process."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from agents.forward import takes_logits_to_keep
from agents.policy import evaluate_tokens, logprobs_at, tempered
from search_gym.codec import HFCodec, TokenCodec, TokenIds, encode_prompt
from search_gym.completion import Completion, CompletionError, Prompt, check_options, check_request, cut_at
from search_gym.errors import OptionError


class LocalCompleter:
    """A causal language model in this process.

    Arguments:
        model: any causal LM with key-value attention; put in eval mode.
        codec: its tokenizer. A chat template wraps every `Prompt` that does not decline it; without one the text goes
            in as it stands, after the token that the tokenizer opens a text with.
        temperature: of sampling; 0 takes the most probable token.
        seed: the random numbers of a completion depend on it and on the prompt alone, not on what else is in the batch.
        batch_size: prompts that are fed at the same time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TokenCodec,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Raises OptionError: ``temperature`` is negative or ``batch_size`` below 1."""
        if not temperature >= 0 or batch_size < 1:
            raise OptionError(f"expected temperature >= 0 and batch_size >= 1, got {temperature} and {batch_size}")
        self.model = model.eval()
        self.codec = codec
        self.temperature = temperature
        self.seed = seed
        self.batch_size = batch_size
        self.eos_ids = _eos_ids(model, codec)
        self._opening = _opening(codec)
        # The argument's name until transformers 5.23, and since.
        names = inspect.signature(model.forward).parameters
        self._cache_name = "past_key_values" if "past_key_values" in names else "cache"
        self._forward_options = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}

    def encode(self, prompt: Prompt) -> TokenIds:
        """The ids (n,) int64 that the model is fed for ``prompt``."""
        if prompt.chat and isinstance(self.codec, HFCodec) and self.codec.tokenizer.chat_template:
            return np.concatenate((encode_prompt(self.codec, prompt.message), self.codec.encode(prompt.reply)))
        pieces = [prompt.message, prompt.reply]
        if prompt.control:
            pattern = "|".join(map(re.escape, sorted(prompt.control, key=len, reverse=True)))
            pieces = re.split(f"({pattern})", prompt.message + prompt.reply)
        encoded = [self.codec.encode(piece, allow_special=piece in prompt.control) for piece in pieces if piece]
        return np.concatenate([self._opening, *encoded])

    def complete(
        self, prompts: Sequence[Prompt], *, stop: Sequence[str] = (), max_tokens: int, logprobs: bool = False
    ) -> list[Completion]:
        """See `Completer`; ``mean_logprob`` is always given, at the sampling temperature (1 for greedy).

        Raises:
            CompletionError: a prompt and ``max_tokens`` are longer than the model's context.
            OptionError: an option is out of range.
        """
        check_request(stop, max_tokens)
        rows = [self._checked(self.encode(prompt), max_tokens) for prompt in prompts]
        completions = []
        for start in range(0, len(rows), self.batch_size):
            completions += self._sample(rows[start : start + self.batch_size], tuple(stop), max_tokens)
        return completions

    @torch.no_grad()
    def _sample(self, rows: Sequence[TokenIds], stop: tuple[str, ...], max_tokens: int) -> list[Completion]:
        token_ids, attention_mask = self._pad(rows)
        cache = self._new_cache()
        uniforms = [self._uniforms(row, max_tokens) for row in rows]
        sampled: list[list[int]] = [[] for _ in rows]
        logprobs = [0.0] * len(rows)
        stopped = [False] * len(rows)
        # The longest tail of tokens, each at least a byte, that a stop string can begin in, and some context.
        tail = 4 * max(map(len, stop), default=0) + 4
        active = list(range(len(rows)))  # the completion that each row of the batch belongs to
        while True:
            logits = self._forward(token_ids, attention_mask, cache)
            points = torch.tensor([uniforms[i][len(sampled[i])] for i in active], dtype=torch.float64)
            tokens, token_logprobs = self._choose(logits, points)
            for i, token, logprob in zip(active, tokens.tolist(), token_logprobs.tolist(), strict=True):
                sampled[i].append(token)
                logprobs[i] += logprob
                stopped[i] = token in self.eos_ids or (
                    bool(stop) and cut_at(self.codec.decode(sampled[i][-tail:]), stop)[1]
                )
            kept = [row for row, i in enumerate(active) if not stopped[i] and len(sampled[i]) < max_tokens]
            if not kept:
                break
            if len(kept) < len(active):
                cache.batch_select_indices(torch.tensor(kept, dtype=torch.int64, device=self.model.device))
            active = [active[row] for row in kept]
            token_ids, attention_mask = tokens[kept][:, None], attention_mask[kept]
            attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
        return [
            self._completion(ids, stop, stopped=s, logprob=logprob)
            for ids, s, logprob in zip(sampled, stopped, logprobs, strict=True)
        ]

    def _completion(self, ids: list[int], stop: tuple[str, ...], *, stopped: bool, logprob: float) -> Completion:
        text, _ = cut_at(self.codec.decode(ids[:-1] if ids[-1] in self.eos_ids else ids), stop)
        return Completion(text, len(ids), "stop" if stopped else "length", logprob / len(ids))

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config.get_text_config())

    def _forward(
        self, token_ids: Int[Tensor, "B n"], attention_mask: Int[Tensor, "B T"], cache: DynamicCache
    ) -> Float[Tensor, "B V"]:
        """The logits after the last of ``token_ids``, the newest n columns of ``attention_mask`` (1 = token)."""
        positions = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)[:, -token_ids.shape[1] :]
        output = self.model(
            input_ids=token_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: cache},
            **self._forward_options,
        )
        return output.logits[:, -1]

    def _choose(self, logits: Float[Tensor, "B V"], points: Float[Tensor, " B"]) -> tuple[Tensor, Tensor]:
        """A token for each row by inverting its distribution function at ``points``, and its log-probability."""
        scores = tempered(logits, self.temperature or 1.0, self.codec.vocab_size)
        if self.temperature == 0:
            ids = scores.argmax(dim=-1)
        else:
            cumulative = scores.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
            targets = points.to(scores.device)[:, None] * cumulative[:, -1:]
            ids = torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp_max(scores.shape[-1] - 1)
        return ids, logprobs_at(scores, ids)

    def option_logprobs(self, prompts: Sequence[Prompt], options: Sequence[str]) -> list[tuple[float, ...]]:
        """See `Completer`: log p(option | prompt), the sum over the option's tokens, at temperature 1.

        An option that the prompt names as ``control`` is that special token.

        Raises:
            CompletionError: a prompt with an option is longer than the model's context, or the model lacks a special
                token.
            OptionError: fewer than two options.
        """
        check_options(options)
        results: list[tuple[float, ...]] = []
        for start in range(0, len(prompts), self.batch_size):
            part = prompts[start : start + self.batch_size]
            encoded = [[self._encode_option(option, prompt) for option in options] for prompt in part]
            longest = [max(map(len, ids)) for ids in encoded]
            rows = [self._checked(self.encode(prompt), n) for prompt, n in zip(part, longest, strict=True)]
            if max(longest) == 1:
                results += self._score_tokens(rows, np.array(encoded, dtype=np.int64)[:, :, 0])
            else:
                results += map(self._score_options, rows, encoded)
        return results

    def _encode_option(self, option: str, prompt: Prompt) -> TokenIds:
        is_control = option in prompt.control
        ids = self.codec.encode(option, allow_special=is_control)
        if is_control and len(ids) != 1:
            raise CompletionError(
                f"expected a model with the special token {option!r}, got one that spells it in {len(ids)} tokens; "
                "do: take the model that the method was made for"
            )
        return ids

    @torch.no_grad()
    def _score_tokens(self, rows: Sequence[TokenIds], options: npt.NDArray[np.int64]) -> list[tuple[float, ...]]:
        """Options of one token each: ``options`` (B, N) after the B ``rows``, from one forward pass."""
        token_ids, attention_mask = self._pad(rows)
        logits = self._forward(token_ids, attention_mask, self._new_cache())
        scores = tempered(logits, 1.0, self.codec.vocab_size).log_softmax(dim=-1)
        chosen = torch.from_numpy(options).to(scores.device)
        return [tuple(row) for row in scores.gather(1, chosen).tolist()]

    @torch.no_grad()
    def _score_options(self, row: TokenIds, options: Sequence[TokenIds]) -> tuple[float, ...]:
        """Options of any length after ``row``, each in a row of its own."""
        token_ids, attention_mask = self._pad([np.concatenate((row, option)) for option in options])
        columns = torch.arange(token_ids.shape[1], device=token_ids.device)
        lengths = torch.tensor([len(option) for option in options], device=token_ids.device)
        loss_mask = columns >= token_ids.shape[1] - lengths[:, None]
        found = evaluate_tokens(
            self.model, token_ids, attention_mask.bool(), loss_mask, 1.0, vocab_size=self.codec.vocab_size
        )
        return tuple(found.logprobs.sum(dim=1).tolist())

    def _pad(self, rows: Sequence[TokenIds]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """``rows`` aligned at the right, and the mask that is 1 on their tokens."""
        width = max(map(len, rows))
        token_ids = np.full((len(rows), width), self.codec.pad_id, dtype=np.int64)
        attention_mask = np.zeros_like(token_ids)
        for row, ids in enumerate(rows):
            token_ids[row, width - len(ids) :] = ids
            attention_mask[row, width - len(ids) :] = 1
        device = self.model.device
        return torch.from_numpy(token_ids).to(device), torch.from_numpy(attention_mask).to(device)

    def _uniforms(self, ids: TokenIds, count: int) -> npt.NDArray[np.float64]:
        if self.temperature == 0:
            return np.zeros(count)
        digest = np.frombuffer(hashlib.sha256(ids.tobytes()).digest(), np.uint32)
        return np.random.default_rng([self.seed, *digest.tolist()]).random(count)

    def _checked(self, ids: TokenIds, num_more: int) -> TokenIds:
        room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if not len(ids) or (room is not None and len(ids) + num_more > room):
            raise CompletionError(
                f"expected a prompt of 1 to {room} tokens, {num_more} for the completion included, got {len(ids)} "
                "without them; do: allow fewer turns, documents or tokens, or take a model with a longer context"
            )
        return ids


def _eos_ids(model: PreTrainedModel, codec: TokenCodec) -> frozenset[int]:
    """The codec's EOS, and those that the model's generation settings name (a chat model may have several)."""
    configured = None if model.generation_config is None else model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return frozenset({codec.eos_id, *map(int, more)})


def _opening(codec: TokenCodec) -> TokenIds:
    """What the tokenizer puts before a text: BOS or nothing."""
    if not isinstance(codec, HFCodec):
        return np.zeros(0, dtype=np.int64)
    added = codec.tokenizer("", add_special_tokens=True)["input_ids"]
    return np.array([i for i in added if i == codec.tokenizer.bos_token_id], dtype=np.int64)
