"""The tiny model as a `agents.decoders.Decoder`: attention blocks, then the pointer head over the same columns."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.decoders import StepByStep, effective_weight
from agents.ops import Chunk, Ops, Step, TorchOps
from agents.sampling import choose
from agents.tiny import rotary_phases


class TinyDecoder(StepByStep):
    """See ``agents.decoders.Decoder``. Weights are the model's own, but for those that adapters are on.

    It computes in float32 under autocast too: the model is too small for another type to be faster.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.ops: Ops = TorchOps()
        self._model: Any = model
        self._config: Any = model.config
        self._device = model.device
        self.steps = 16 if model.device.type == "cuda" else 2
        self.num_rows = self.capacity = 0
        self.sync()

    def free(self) -> None:
        self._keys, self._values, self.num_rows, self.capacity = [], [], 0, 0
        self._pointer_keys = self._ids = torch.empty(0)

    def sync(self) -> None:
        self._linear = [
            {name: effective_weight(getattr(block, name)) for name in ("qkv", "out", "up", "down")}
            for block in self._model.blocks
        ]
        self._sentinel = effective_weight(self._model.pointer.sentinel)

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

    def prefill(self, token_ids: Tensor, chunk: Chunk) -> None:
        with torch.autocast(self._device.type, enabled=False):
            self._prefill(token_ids, chunk)

    def _prefill(self, token_ids: Tensor, chunk: Chunk) -> None:
        hidden = self._embed(token_ids)
        scale = (self._config.hidden_size // self._config.num_attention_heads) ** -0.5
        places = self._places(chunk.token_rows, chunk.positions)
        for index in range(len(self._keys)):
            query = self._store(index, hidden, chunk.positions, places)
            attended = self.ops.attend_chunk(query, self._keys[index], self._values[index], chunk, scale, self.capacity)
            hidden = self._after_attention(index, hidden, attended)
        self._point(hidden, token_ids, chunk.token_rows, chunk.positions)

    def step(self, token_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        """Probabilities (R, V), which `sample` takes."""
        with torch.autocast(self._device.type, enabled=False):
            return self._step(token_ids, positions, step)

    def _step(self, token_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        num_rows, longest = len(token_ids), step.longest
        rows = torch.arange(num_rows, device=self._device)
        columns = torch.arange(longest, device=self._device)
        # What is added to scores: every row sees itself at least, so no softmax is empty.
        hidden_columns = columns > positions[:, None]
        bias = torch.zeros((num_rows, longest), device=self._device).masked_fill_(hidden_columns, -math.inf)
        hidden = self._embed(token_ids)
        heads = self._config.num_attention_heads
        places = self._places(rows, positions)
        block_bias = bias[:, None].expand(-1, heads, -1).reshape(num_rows * heads, 1, longest)
        for index in range(len(self._keys)):
            query = self._store(index, hidden, positions, places)
            attended = self._attend(query, self._keys[index], self._values[index], block_bias)
            hidden = self._after_attention(index, hidden, attended)
        normed = self._point(hidden, token_ids, rows, positions)
        return self._read(normed, positions, bias)

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """One query of each row and head over its columns; with a single query, batched products beat fused ones."""
        num_rows, heads, width = query.shape
        longest = bias.shape[-1]
        shown = [x[:num_rows].flatten(0, 1)[:, :longest] for x in (keys, values)]
        flat = query.reshape(num_rows * heads, 1, width)
        scores = torch.baddbmm(bias, flat, shown[0].transpose(1, 2), alpha=width**-0.5)
        return torch.bmm(scores.softmax(dim=-1), shown[1])

    def sample(
        self, scores: Tensor, uniforms: Tensor | None, temperature: float, vocab_size: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        """From probabilities (R, V), which need no logarithm of all words at temperature 1."""
        if temperature != 1 or top_p < 1 or uniforms is None:
            return choose(_logs(scores), uniforms, temperature, vocab_size, top_p)
        cumulative = scores[:, :vocab_size].cumsum(dim=-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True).clamp_max_(vocab_size - 1)
        return ids.squeeze(-1), (_logs(scores.gather(-1, ids)) - total.log()).squeeze(-1).float()

    def _embed(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._model.embed_tokens.weight) * math.sqrt(self._config.hidden_size)

    def _places(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Where the heads of tokens are in a cache that is seen as (rows * heads * columns, width)."""
        heads = torch.arange(self._config.num_attention_heads, device=self._device)
        return ((rows[:, None] * len(heads) + heads) * self.capacity + positions[:, None]).flatten()

    def _store(self, index: int, hidden: Tensor, positions: Tensor, places: Tensor) -> Tensor:
        """Put keys and values of a block into the cache; returns the queries (N, heads, width)."""
        block = self._model.blocks[index]
        qkv = F.linear(_norm(hidden, block.attention_norm), self._linear[index]["qkv"], block.qkv.bias)
        qkv = qkv.view(len(hidden), 3, block.num_heads, -1)
        pairs = torch.view_as_complex(qkv[:, :2].unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * self._phases[positions][:, None]).flatten(-2)
        width = rotated.shape[-1]
        self._keys[index].view(-1, width).index_copy_(0, places, rotated[:, 1].reshape(-1, width))
        self._values[index].view(-1, width).index_copy_(0, places, qkv[:, 2].reshape(-1, width))
        return rotated[:, 0]

    def _after_attention(self, index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        linear = self._linear[index]
        hidden = hidden + F.linear(attended.reshape(len(hidden), -1), linear["out"])
        up = F.linear(_norm(hidden, self._model.blocks[index].mlp_norm), linear["up"])
        return hidden + F.linear(F.relu(up, inplace=True), linear["down"])

    def _point(self, hidden: Tensor, token_ids: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """Put the pointer's keys into the cache; returns the final states (N, width)."""
        normed = _norm(hidden, self._model.norm)
        self._pointer_keys[rows, 0, positions] = normed @ self._model.pointer.key
        self._ids[rows, 0, positions, 0] = token_ids
        return normed

    def _read(self, normed: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Probabilities (R, V) of the tokens after ``positions``; see ``agents.tiny.PointerHead``."""
        pointer, num_rows, longest = self._model.pointer, len(normed), bias.shape[-1]
        query = (normed @ pointer.query)[:, None]
        keys = self._pointer_keys[:num_rows, 0, :longest]
        scores = torch.baddbmm(bias[:, None], query, keys.transpose(1, 2), alpha=normed.shape[-1] ** -0.5)[:, 0]
        scores.scatter_(1, positions[:, None], -math.inf)  # a token does not point at itself
        sentinel = F.linear(normed, self._sentinel, pointer.sentinel.bias)
        weights = torch.cat((sentinel, scores), dim=-1).softmax(dim=-1)
        following = self._ids[:num_rows, 0, 1 : longest + 1, 0]
        vocabulary = F.linear(normed, self._model.lm_head.weight).softmax(dim=-1)
        return vocabulary.mul_(weights[:, :1]).scatter_add_(-1, following, weights[:, 1:])


def _logs(probs: Tensor) -> Tensor:
    return (probs + torch.finfo(probs.dtype).tiny).log()


def _norm(x: Tensor, module: nn.RMSNorm) -> Tensor:
    return F.rms_norm(x, module.normalized_shape, module.weight, module.eps)
