"""Sampling turns from a causal LM for many episodes at once, with a key-value cache that lives as long as an episode.

``Generator`` is the protocol. ``CachedGenerator`` is the simple engine, for any Hugging Face causal LM that has an
attention cache; `agents.fast_generation` is the fast one, for the models that `agents.decoders` knows. Both give the
same tokens for the same seed. `make_generator` chooses.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from agents.forward import takes_logits_to_keep
from agents.kv_cache import Block, SlotCache
from agents.sampling import Randomness, check_top_p, choose
from search_gym.codec import TokenCodec, TokenIds
from search_gym.errors import OptionError
from search_gym.tags import closes_turn

Engine = Literal["auto", "simple", "fast", "vllm"]

_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int64)


class SampledTurn(NamedTuple):
    """The tokens (n,) of one turn, and the log-probability (n,) that each had when it was sampled."""

    token_ids: TokenIds
    logprobs: npt.NDArray[np.float32]


@runtime_checkable
class Generator(Protocol):
    """Samples turns in numbered slots, each of which holds one growing sequence of tokens."""

    def start(self, num_slots: int, seed: int, first_episode: int = 0) -> None:
        """Forget everything; slots 0 to ``num_slots`` - 1 are empty and hold episodes ``first_episode`` and following.

        The same seed gives an episode of the same number the same random numbers, whichever slot it is in.
        """
        ...

    def place(self, slots: Sequence[int], episodes: Sequence[int]) -> None:
        """Empty ``slots`` for the episodes with these numbers, whose ``first_episode`` is not added any more."""
        ...

    def extend(self, slots: Sequence[int], token_ids: Sequence[TokenIds]) -> None:
        """Append a prompt or an observation, (n,) ids for each of ``slots``, to what the slot holds."""
        ...

    def sample(self, slots: Sequence[int], max_tokens: Sequence[int]) -> list[SampledTurn]:
        """Sample one turn for each of ``slots`` and append it to what the slot holds.

        A turn ends with the first token whose text completes ``</search>`` or ``</answer>``, with EOS, or with the
        slot's ``max_tokens``-th token.
        """
        ...

    def begin(self, slots: Sequence[int], max_tokens: Sequence[int]) -> None:
        """Open a turn in each of ``slots``, which `advance` will sample."""
        ...

    def advance(self) -> list[tuple[int, SampledTurn]]:
        """Go on with the open turns until some have ended: those, each with its slot. Without open turns, none."""
        ...

    def drop(self, slots: Sequence[int]) -> None:
        """Forget ``slots``: their episodes have ended."""
        ...

    def release(self) -> None:
        """Forget everything and give its memory back, until the next `start`."""
        ...


class WholeTurns(ABC):
    """`Generator.begin` and `Generator.advance` for an engine that samples the turns of many slots together."""

    _opened: dict[int, int] | None = None

    @abstractmethod
    def sample(self, slots: Sequence[int], max_tokens: Sequence[int]) -> list[SampledTurn]:
        """See `Generator.sample`."""

    def begin(self, slots: Sequence[int], max_tokens: Sequence[int]) -> None:
        """Remember the turns for the next `advance`."""
        self._opened = {**(self._opened or {}), **dict(zip(slots, max_tokens, strict=True))}

    def advance(self) -> list[tuple[int, SampledTurn]]:
        """Sample all open turns to their ends."""
        opened, self._opened = self._opened or {}, {}
        return list(zip(opened, self.sample(list(opened), list(opened.values())), strict=True)) if opened else []


def make_generator(
    model: PreTrainedModel,
    codec: TokenCodec,
    *,
    engine: Engine = "auto",
    temperature: float = 1.0,
    greedy: bool = False,
    top_p: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Generator:
    """The engine for ``model``: "fast", "simple", or with "auto" the fast one for every model that it knows.

    "vllm" is experimental: see `agents.vllm_generation`.

    ``dtype`` of the fast engine's products, by default the model's; other arguments as in `CachedGenerator`.

    Raises:
        OptionError: a model that ``engine="fast"`` does not know, ``top_p`` out of range, or what vLLM cannot do.
        MissingDependencyError: ``engine="vllm"`` without vLLM.
    """
    if engine == "vllm":
        from agents.vllm_generation import VllmGenerator

        return VllmGenerator(model, codec, temperature=temperature, greedy=greedy, top_p=top_p)
    if engine != "simple":
        from agents.fast_generation import FastGenerator

        if FastGenerator.knows(model):
            return FastGenerator(model, codec, temperature=temperature, greedy=greedy, top_p=top_p, dtype=dtype)
        if engine == "fast":
            raise OptionError(
                f"expected a model that agents.decoders knows for engine='fast', got {model.config.model_type!r}; "
                "do: use engine='simple', or write a Decoder for it"
            )
    return CachedGenerator(model, codec, temperature=temperature, greedy=greedy, top_p=top_p)


class CachedGenerator(WholeTurns):
    """A ``Generator`` that feeds every token to the model once.

    Arguments:
        model: any causal LM with key-value attention; put in eval mode. Its weights may change between episodes.
        codec: ids from ``codec.vocab_size`` on, which a padded embedding may have, are never sampled.
        temperature: of the sampled distribution, and of the log-probabilities in any case.
        greedy: take the most probable token instead of sampling.
        top_p: sample only among the most probable tokens that together hold this much probability (Holtzman et al.
            2019, arXiv 1904.09751). The log-probabilities stay those of the whole distribution, so with less than 1
            training does not score the distribution that was sampled.

    The random numbers of a turn depend on the seed, the episode's number and how many turns it has had, nothing else.

    Raises:
        OptionError: ``top_p`` is not above 0 and at most 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TokenCodec,
        *,
        temperature: float = 1.0,
        greedy: bool = False,
        top_p: float = 1.0,
    ) -> None:
        check_top_p(top_p)
        self.model = model
        self.codec = codec
        self.temperature = temperature
        self.greedy = greedy
        self.top_p = top_p
        self._forward_options = {"logits_to_keep": 1} if takes_logits_to_keep(model) else {}
        # transformers 5.24 renamed past_key_values to cache.
        takes_cache = "cache" in inspect.signature(model.forward).parameters
        self._cache_name = "cache" if takes_cache else "past_key_values"
        # A sliding window counts masked columns too, so a row may not have any between its tokens.
        self._gaps_matter = getattr(model.config.get_text_config(), "sliding_window", None) is not None
        # A closing tag ends in ">", so only a token with a ">" can complete one.
        self._may_close = np.array([">" in codec.decode([i]) for i in range(codec.vocab_size)], dtype=np.bool_)

    def start(self, num_slots: int, seed: int, first_episode: int = 0) -> None:
        self.model.eval()
        self._randomness = Randomness(num_slots, seed, first_episode)
        self._cache = SlotCache(num_slots, self.model.device)
        self._unfed: list[TokenIds] = [_NO_TOKENS] * num_slots  # what each slot holds beyond its cache

    def release(self) -> None:
        self.start(0, seed=0)

    def place(self, slots: Sequence[int], episodes: Sequence[int]) -> None:
        self.drop(slots)
        self._randomness.place(slots, episodes)

    def extend(self, slots: Sequence[int], token_ids: Sequence[TokenIds]) -> None:
        for slot, ids in zip(slots, token_ids, strict=True):
            self._unfed[slot] = np.concatenate((self._unfed[slot], ids))

    def drop(self, slots: Sequence[int]) -> None:
        self._cache.drop(slots)
        for slot in slots:
            self._unfed[slot] = _NO_TOKENS

    @torch.no_grad()
    def sample(self, slots: Sequence[int], max_tokens: Sequence[int]) -> list[SampledTurn]:
        """Sample one turn for each of ``slots``.

        Raises:
            OptionError: a slot holds no token to go on from, or may not sample a single one.
        """
        limits = check_turns(slots, max_tokens, [self._unfed[slot].size for slot in slots])
        longest = int(limits.max())
        uniforms = torch.from_numpy(np.stack([self._randomness.draw(slot, longest) for slot in slots]))
        sampled = np.zeros((len(slots), longest), dtype=np.int64)
        logprobs = np.zeros((len(slots), longest), dtype=np.float32)
        counts = np.zeros(len(slots), dtype=np.int64)

        block, logits = self._prefill(slots, longest - 1)
        turns = np.arange(len(slots))  # the turn that each row of the block belongs to
        active = np.ones(len(slots), dtype=np.bool_)  # rows whose turn is open; others are fed masked columns
        for step in range(longest):
            tokens, token_logprobs = self._choose(logits, uniforms[turns, step])
            sampled[turns[active], step] = tokens[active]
            logprobs[turns[active], step] = token_logprobs[active]
            counts[turns[active]] = step + 1
            ended = active & ((tokens == self.codec.eos_id) | (limits[turns] == step + 1))
            for row in np.flatnonzero(active & ~ended & self._may_close[tokens]):
                ended[row] = closes_turn(self.codec.decode(sampled[turns[row], : step + 1]))
            active = active & ~ended
            if not active.any():
                break
            if 2 * active.sum() <= active.size:
                turns, tokens, active = turns[active], tokens[active], active[active]
                block = self._cache.gather([slots[turn] for turn in turns], longest - step - 1)
            logits = self._feed(block, tokens[:, None], active[:, None])

        for slot, turn, count in zip(slots, sampled, counts, strict=True):
            self._unfed[slot] = turn[count - 1 : count]
        return [SampledTurn(sampled[turn, :n].copy(), logprobs[turn, :n].copy()) for turn, n in enumerate(counts)]

    def _prefill(self, slots: Sequence[int], reserve: int) -> tuple[Block, Tensor]:
        """Feed what ``slots`` hold beyond the cache: their block, with ``reserve`` free columns, and last logits."""
        chunks = [self._unfed[slot] for slot in slots]
        width = max(chunk.size for chunk in chunks)
        block = self._cache.gather(slots, width + reserve)
        if not self._gaps_matter:
            return block, self._feed(block, *_pad(chunks, self.codec.pad_id, left=True))
        if width > 1:
            self._feed(block, *_pad([chunk[:-1] for chunk in chunks], self.codec.pad_id, left=False))
            block = self._cache.gather(slots, 1 + reserve)
        return block, self._feed(block, *_pad([chunk[-1:] for chunk in chunks], self.codec.pad_id, left=True))

    def _feed(self, block: Block, token_ids: npt.NDArray[np.int64], real: npt.NDArray[np.bool_]) -> Tensor:
        """Append columns (rows, n) to ``block``, tokens where ``real`` is True; the last one's logits (rows, V)."""
        device = self.model.device
        new = torch.from_numpy(real).to(device)
        position_ids = (block.real.sum(dim=1, keepdim=True) + new.cumsum(dim=1) - 1).clamp_min(0)
        block.real = torch.cat((block.real, new), dim=1)
        output = self.model(
            input_ids=torch.from_numpy(token_ids).to(device),
            attention_mask=block.real.long(),
            position_ids=position_ids,
            use_cache=True,
            **{self._cache_name: block.cache},
            **self._forward_options,
        )
        return output.logits[:, -1]

    def _choose(self, logits: Tensor, uniforms: Tensor) -> tuple[TokenIds, npt.NDArray[np.float32]]:
        """A token for each row of ``logits`` (n, V), by inverting its distribution function at ``uniforms`` (n,)."""
        points = None if self.greedy else uniforms.to(logits.device)
        ids, logprobs = choose(logits, points, self.temperature, self.codec.vocab_size, self.top_p)
        return ids.cpu().numpy(), logprobs.cpu().numpy()


def check_turns(slots: Sequence[int], max_tokens: Sequence[int], num_unfed: Sequence[int]) -> npt.NDArray[np.int64]:
    """``max_tokens`` as an array.

    Raises:
        OptionError: a slot holds no token to go on from, or may not sample a single one.
    """
    limits = np.asarray(max_tokens, dtype=np.int64)
    empty = [slot for slot, count in zip(slots, num_unfed, strict=True) if not count]
    if empty or limits.shape != (len(slots),) or not (limits > 0).all():
        raise OptionError(
            f"expected slots that hold tokens, and a positive max_tokens for each, got empty slots {empty} and "
            f"max_tokens {limits.tolist()}; do: extend a slot with its prompt first, drop it when it is full"
        )
    return limits


def _pad(chunks: Sequence[TokenIds], pad_id: int, *, left: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """``chunks`` padded to a common length: token ids (rows, n), and a mask that is True on tokens."""
    lengths = np.array([chunk.size for chunk in chunks])[:, None]
    width = int(lengths.max())
    columns = np.arange(width)
    real = columns >= width - lengths if left else columns < lengths
    token_ids = np.full(real.shape, pad_id, dtype=np.int64)
    token_ids[real] = np.concatenate(chunks)
    return token_ids, real
