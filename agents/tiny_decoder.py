"""The tiny model as a `agents.decoders.Decoder`: attention blocks, then the pointer head over the same columns."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from agents.ops import Chunk, Ops, Step, TorchOps
from agents.tiny import rotary_phases


class TinyDecoder:
    """See ``agents.decoders.Decoder``. Weights are the model's own, so there is nothing to renew."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.ops: Ops = TorchOps()
        self._model: Any = model
        self._config: Any = model.config
        self._device = model.device
        self.num_rows = self.capacity = 0

    def free(self) -> None:
        self._keys, self._values, self.num_rows, self.capacity = [], [], 0, 0
        self._pointer_keys = self._ids = torch.empty(0)

    def sync(self) -> None:
        pass

    def allocate(self, num_rows: int, capacity: int) -> None:
        config, device = self._config, self._device
        heads, width = config.num_attention_heads, config.hidden_size
        blocks = config.num_hidden_layers - 1
        old = self._caches() if self.num_rows else []
        shape = (num_rows, heads, capacity, width // heads)
        self._keys = [torch.zeros(shape, device=device) for _ in range(blocks)]
        self._values = [torch.zeros(shape, device=device) for _ in range(blocks)]
        # The pointer's keys, and one column more of ids, because a column stands for the token after it.
        self._pointer_keys = torch.zeros((num_rows, 1, capacity, width), device=device)
        self._ids = torch.zeros((num_rows, 1, capacity + 1, 1), dtype=torch.int64, device=device)
        for before, now in zip(old, self._caches(), strict=bool(old)):
            rows, columns = min(num_rows, self.num_rows), min(capacity, self.capacity)
            now[:rows, :, :columns] = before[:rows, :, :columns]
        self.num_rows, self.capacity = num_rows, capacity
        positions = torch.arange(capacity, device=device)[None]
        self._phases = rotary_phases(positions, width // heads, config.rotary_base)[0, :, 0]

    def _caches(self) -> list[Tensor]:
        return [*self._keys, *self._values, self._pointer_keys, self._ids]

    def copy_rows(self, sources: list[int], targets: list[int], length: int) -> None:
        for cache in self._caches():
            cache[targets, :, :length] = cache[sources, :, :length]

    @torch.no_grad()
    def prefill(self, token_ids: Tensor, chunk: Chunk) -> None:
        hidden = self._embed(token_ids)
        for index in range(len(self._keys)):
            query = self._store(index, hidden, chunk.token_rows, chunk.positions)
            attended = self.ops.attend_chunk(
                query, self._keys[index], self._values[index], chunk, query.shape[-1] ** -0.5, self.capacity
            )
            hidden = self._after_attention(index, hidden, attended)
        self._point(hidden, token_ids, chunk.token_rows, chunk.positions)

    @torch.no_grad()
    def step(self, token_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        num_rows = token_ids.shape[0]
        rows = torch.arange(num_rows, device=self._device)
        hidden = self._embed(token_ids)
        for index in range(len(self._keys)):
            query = self._store(index, hidden, rows, positions)
            attended = self.ops.attend_step(
                query, self._keys[index], self._values[index], step, query.shape[-1] ** -0.5, self.capacity
            )
            hidden = self._after_attention(index, hidden, attended)
        normed = self._point(hidden, token_ids, rows, positions)
        return self._read(normed, positions, step.longest)

    def _embed(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._model.embed_tokens.weight) * math.sqrt(self._config.hidden_size)

    def _store(self, index: int, hidden: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Put keys and values of a block into the cache; returns the queries (N, heads, width)."""
        block = self._model.blocks[index]
        norm = block.attention_norm
        normed = F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.eps)
        qkv = F.linear(normed, block.qkv.weight, block.qkv.bias).view(len(hidden), 3, block.num_heads, -1)
        pairs = torch.view_as_complex(qkv[:, :2].unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * self._phases[positions][:, None]).flatten(-2)
        self._keys[index][rows, :, positions] = rotated[:, 1]
        self._values[index][rows, :, positions] = qkv[:, 2]
        return rotated[:, 0]

    def _after_attention(self, index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        block = self._model.blocks[index]
        hidden = hidden + F.linear(attended.reshape(len(hidden), -1), block.out.weight)
        norm = block.mlp_norm
        normed = F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.eps)
        return hidden + F.linear(F.relu(F.linear(normed, block.up.weight)), block.down.weight)

    def _point(self, hidden: Tensor, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Put the pointer's keys into the cache; returns the final states (N, width)."""
        norm = self._model.norm
        normed = F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.eps)
        self._pointer_keys[rows, 0, positions] = normed @ self._model.pointer.key
        self._ids[rows, 0, positions, 0] = token_ids
        return normed

    def _read(self, normed: Tensor, positions: Tensor, longest: int) -> Tensor:
        """Log-probabilities (R, V) of the tokens after ``positions``; see ``agents.tiny.PointerHead``."""
        pointer, num_rows = self._model.pointer, len(normed)
        query = normed @ pointer.query / math.sqrt(normed.shape[-1])
        scores = (self._pointer_keys[:num_rows, 0, :longest] @ query[:, :, None]).squeeze(-1)
        earlier = torch.arange(longest, device=self._device) < positions[:, None]
        sentinel = F.linear(normed, pointer.sentinel.weight, pointer.sentinel.bias)
        weights = torch.cat((sentinel, scores.masked_fill(~earlier, -math.inf)), dim=-1).softmax(dim=-1)
        following = self._ids[:num_rows, 0, 1 : longest + 1, 0]
        vocabulary = F.linear(normed, self._model.lm_head.weight).softmax(dim=-1)
        probs = (vocabulary * weights[:, :1]).scatter_add(-1, following, weights[:, 1:])
        return (probs + torch.finfo(probs.dtype).tiny).log()
