"""The tiny model as a `agents.decoders.Decoder` on a CPU: `agents.tiny_kernels` around a cache of numpy arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from agents import stop_tags, tiny_kernels
from agents.decoders import effective_weight
from agents.ops import Chunk, Ops, Step, TorchOps
from agents.tiny import rotary_phases
from agents.tiny_arrays import Cache, Turns, Weights
from agents.turn_rows import Sampling, TurnRows

_Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]
_WORTH_A_THREAD = 8
"""Tokens for which waking a thread pays."""


class TinyCpuDecoder:
    """See ``agents.decoders.Decoder``; float32, in as many threads as torch has."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.ops: Ops = TorchOps()
        self._model: Any = model
        self._config: Any = model.config
        self.steps = 64
        self._pool: ThreadPoolExecutor | None = None
        self.num_rows = self.capacity = 0
        self.sync()
        self.free()

    @staticmethod
    def knows(model: PreTrainedModel) -> bool:
        """Whether the sizes of ``model`` are those that the kernels are written for."""
        config: Any = model.config
        head_width = config.hidden_size // config.num_attention_heads
        return head_width % 4 == 0 and config.intermediate_size % 4 == 0

    def sync(self) -> None:
        model = self._model

        def matrices(name: str) -> _Floats:
            return np.stack([_array(effective_weight(getattr(block, name)).T) for block in model.blocks])

        def vectors(name: str, attribute: str = "weight") -> _Floats:
            return np.stack([_array(getattr(getattr(block, name), attribute)) for block in model.blocks])

        pointer, embedding = model.pointer, model.embed_tokens.weight
        sentinel = torch.cat((effective_weight(pointer.sentinel)[0], pointer.sentinel.bias.detach()))
        self._weights = Weights(
            embedding=_array(embedding * math.sqrt(self._config.hidden_size)),
            attention_norm=vectors("attention_norm"),
            qkv=matrices("qkv"),
            qkv_bias=vectors("qkv", "bias"),
            out=matrices("out"),
            mlp_norm=vectors("mlp_norm"),
            up=matrices("up"),
            down=matrices("down"),
            norm=_array(model.norm.weight),
            pointer_query=_array(pointer.query),
            pointer_key=_array(pointer.key),
            sentinel=_array(sentinel),
            head=_array(F.pad(model.lm_head.weight.T, (0, -len(embedding) % 16))),
        )

    def allocate(self, num_rows: int, capacity: int) -> None:
        old, rows, columns = self._cache, min(num_rows, self.num_rows), min(capacity, self.capacity)
        self._cache = self._empty_cache(num_rows, capacity)
        self._cache.keys[:, :rows, ..., :columns] = old.keys[:, :rows, ..., :columns]
        self._cache.values[:, :rows, :, :columns] = old.values[:, :rows, :, :columns]
        self._cache.pointer_keys[:rows, :, :columns] = old.pointer_keys[:rows, :, :columns]
        self._cache.token_ids[:rows, :columns] = old.token_ids[:rows, :columns]
        self._probs = np.ones((num_rows, self._config.vocab_size), dtype=np.float32)
        self.num_rows, self.capacity = num_rows, capacity

    def _empty_cache(self, num_rows: int, capacity: int) -> Cache:
        config = self._config
        heads, width, blocks = config.num_attention_heads, config.hidden_size, config.num_hidden_layers - 1
        phases = rotary_phases(torch.arange(capacity)[None], width // heads, config.rotary_base)[0, :, 0, 0]
        return Cache(
            keys=np.zeros((blocks, num_rows, heads, width // heads, capacity), dtype=np.float32),
            values=np.zeros((blocks, num_rows, heads, capacity, width // heads), dtype=np.float32),
            pointer_keys=np.zeros((num_rows, width, capacity), dtype=np.float32),
            token_ids=np.zeros((num_rows, capacity + 1), dtype=np.int64),
            cos=_array(phases.real),
            sin=_array(phases.imag),
        )

    def free(self) -> None:
        self.num_rows = self.capacity = 0
        self._cache = self._empty_cache(0, 0)

    def copy_rows(self, sources: list[int], targets: list[int], length: int) -> None:
        cache = self._cache
        for source, target in zip(sources, targets, strict=True):
            cache.keys[:, target, ..., :length] = cache.keys[:, source, ..., :length]
            cache.values[:, target, :, :length] = cache.values[:, source, :, :length]
            cache.pointer_keys[target, :, :length] = cache.pointer_keys[source, :, :length]
            cache.token_ids[target, :length] = cache.token_ids[source, :length]

    def prefill(self, token_ids: Tensor, chunk: Chunk) -> None:
        ends = np.cumsum(chunk.counts).tolist()
        arrays = token_ids.numpy(), chunk.token_rows.numpy(), chunk.positions.numpy()
        self._forward(*arrays, np.full(len(token_ids), -1), ends)

    def step(self, token_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Probabilities (R, V), valid until the next step."""
        rows = np.flatnonzero(step.lengths.numpy())
        self._forward(token_ids.numpy()[rows], rows, positions.numpy()[rows], rows, range(1, len(rows) + 1))
        return torch.from_numpy(self._probs[: len(token_ids)])

    def take_steps(self, rows: TurnRows, count: int, sampling: Sampling, longest: int) -> None:
        turns = Turns(*(getattr(rows, field.name).numpy() for field in fields(rows)))
        tag_table = sampling.tag_table.numpy()
        cuts = self._cuts(len(turns.tokens), range(1, len(turns.tokens) + 1))

        def run(first: int, last: int) -> None:
            tiny_kernels.take_steps(
                first,
                last,
                count,
                turns,
                self._weights,
                self._cache,
                tag_table,
                stop_tags.CLOSED,
                sampling.vocab_size,
                sampling.eos_id,
                sampling.greedy,
                sampling.temperature,
                sampling.top_p,
            )

        self._in_threads(run, cuts)

    def _forward(self, token_ids: _Ints, rows: _Ints, positions: _Ints, targets: _Ints, ends: Sequence[int]) -> None:
        """`tiny_kernels.forward`, in threads that take whole runs of tokens; ``ends`` are those of the runs."""

        def run(first: int, last: int) -> None:
            part = slice(first, last)
            tiny_kernels.forward(
                token_ids[part], rows[part], positions[part], self._weights, self._cache, targets[part], self._probs
            )

        self._in_threads(run, self._cuts(len(token_ids), ends))

    def _cuts(self, size: int, ends: Sequence[int]) -> list[int]:
        """Where to cut ``size`` tokens for the threads there are: at some of ``ends``, in parts about equally large."""
        threads = max(1, min(torch.get_num_threads(), size // _WORTH_A_THREAD))
        cuts = (next(end for end in ends if end * threads >= size * i) for i in range(1, threads))
        return sorted({0, size, *cuts})

    def _in_threads(self, run: Callable[[int, int], None], cuts: Sequence[int]) -> None:
        first, *others = list(pairwise(cuts)) or [(0, 0)]
        if others and self._pool is None:
            self._pool = ThreadPoolExecutor()
        waiting = [self._pool.submit(run, *part) for part in others] if self._pool is not None else []
        run(*first)
        for part in waiting:
            part.result()


def _array(x: Tensor) -> _Floats:
    return np.ascontiguousarray(x.detach().float().numpy())
