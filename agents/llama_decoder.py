"""Llama and the models that are built like it as a `agents.decoders.Decoder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.decoders import StepByStep, effective_weight
from agents.ops import EVERYTHING, Activation, Chunk, Ops, Step
from agents.sampling import choose


@dataclass
class _Layer:
    """The weights of one layer as they are multiplied, and how they follow from the model's modules."""

    module: Any
    weights: dict[str, Tensor]
    scale: float
    window: int
    rope: str

    def sources(self) -> dict[str, Callable[[], Tensor]]:
        """For each weight, what computes it."""
        block = self.module
        attention, mlp = block.self_attn, block.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)

        def joined(*linears: nn.Module) -> Callable[[], Tensor]:
            return lambda: torch.cat([effective_weight(linear) for linear in linears])

        found: dict[str, Callable[[], Tensor]] = {
            "qkv": joined(*projections),
            "out": joined(attention.o_proj),
            "gate_up": joined(mlp.gate_proj, mlp.up_proj),
            "down": joined(mlp.down_proj),
            "norm": _norm(block.input_layernorm),
        }
        if getattr(attention.q_proj, "bias", None) is not None:
            found["qkv_bias"] = lambda: torch.cat([linear.bias.detach() for linear in projections])
        if getattr(attention.o_proj, "bias", None) is not None:
            found["out_bias"] = lambda: attention.o_proj.bias.detach()
        if getattr(attention, "q_norm", None) is not None:
            found |= {"q_norm": _norm(attention.q_norm), "k_norm": _norm(attention.k_norm)}
        if (before_mlp := getattr(block, "pre_feedforward_layernorm", None)) is not None:
            found |= {
                "mlp_norm": _norm(before_mlp),
                "after_attention": _norm(block.post_attention_layernorm),
                "after_mlp": _norm(block.post_feedforward_layernorm),
            }
        else:
            found["mlp_norm"] = _norm(block.post_attention_layernorm)
        return found


def _norm(module: Any) -> Callable[[], Tensor]:
    """The factor of an RMS norm; Gemma stores it less 1."""
    one_based = type(module).__name__.startswith("Gemma")
    return lambda: module.weight.detach().float() + (1.0 if one_based else 0.0)


class LlamaDecoder(StepByStep):
    """Llama, Mistral, Qwen2, Qwen3 and Gemma3: RMS norms, rotary positions, grouped queries, a gated MLP.

    Matrix products and the cache are in ``dtype``, residuals and norms in float32, as in training under autocast.
    Weights are copies, joined where they are multiplied together; `sync` renews them.
    """

    def __init__(self, model: PreTrainedModel, *, dtype: torch.dtype, ops: Ops) -> None:
        self.ops, self.dtype = ops, dtype
        self._device = model.device
        self.steps = 16 if model.device.type == "cuda" else 2
        body: Any = model.get_decoder()
        config = body.config
        self._body = body
        self._head: Any = model.get_output_embeddings()
        self._num_queries, self._num_keys = config.num_attention_heads, config.num_key_value_heads
        self._head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps: float = config.rms_norm_eps
        activation = getattr(config, "hidden_act", None) or config.hidden_activation
        self._activation: Activation = "gelu_tanh" if "gelu" in activation else "silu"
        self._embed_scale = float(getattr(body.embed_tokens, "scalar_embed_scale", 1.0))
        self._layers = [self._layer(block) for block in body.layers[: config.num_hidden_layers]]
        self._final: dict[str, Tensor] = {}
        self.num_rows = self.capacity = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._phases: dict[str, tuple[Tensor, Tensor]] = {}
        self.sync()

    def _layer(self, block: Any) -> _Layer:
        attention = block.self_attn
        window = getattr(attention, "sliding_window", None)
        if window is None and self._body.config.model_type == "mistral":
            window = self._body.config.sliding_window
        rope = getattr(attention, "layer_type", None) if self._body.config.model_type == "gemma3_text" else None
        return _Layer(block, {}, attention.scaling, EVERYTHING if window is None else window, rope or "")

    @torch.no_grad()
    def sync(self) -> None:
        for layer in self._layers:
            for name, compute in layer.sources().items():
                self._keep(layer.weights, name, compute())
        self._keep(self._final, "norm", _norm(self._body.norm)())
        self._keep(self._final, "embedding", self._body.embed_tokens.weight.detach())
        if self._head.weight is self._body.embed_tokens.weight:
            self._final["head"] = self._final["embedding"]
        else:
            self._keep(self._final, "head", effective_weight(self._head))

    def _keep(self, weights: dict[str, Tensor], name: str, value: Tensor) -> None:
        dtype = torch.float32 if "norm" in name or "after" in name else self.dtype
        if name in weights:
            weights[name].copy_(value)
        else:
            weights[name] = value.to(dtype, copy=True)

    def allocate(self, num_rows: int, capacity: int) -> None:
        shape = (num_rows, self._num_keys, capacity, self._head_dim)
        for cache in (self._keys, self._values):
            old = cache.copy()
            cache.clear()
            for index in range(len(self._layers)):
                # Zeros, because what is hidden must at least be finite.
                cache.append(torch.zeros(shape, dtype=self.dtype, device=self._device))
                if old:
                    rows, columns = min(num_rows, self.num_rows), min(capacity, self.capacity)
                    cache[index][:rows, :, :columns] = old[index][:rows, :, :columns]
                    old[index] = cache[index]  # so that never more than one layer is there twice
        self.num_rows, self.capacity = num_rows, capacity
        positions = torch.arange(capacity, device=self._device)[None]
        like = torch.empty(0, dtype=torch.float32, device=self._device)
        half = self._head_dim // 2
        for rope in {layer.rope for layer in self._layers}:
            cos, sin = self._body.rotary_emb(like, positions, *([rope] if rope else []))
            self._phases[rope] = cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()

    def free(self) -> None:
        self._keys, self._values, self._phases = [], [], {}
        self.num_rows = self.capacity = 0
        self._final.clear()
        for layer in self._layers:
            layer.weights.clear()

    def prefill(self, token_ids: Tensor, chunk: Chunk) -> None:
        def attend(index: int, query: Tensor) -> Tensor:
            layer = self._layers[index]
            return self.ops.attend_chunk(
                query, self._keys[index], self._values[index], chunk, layer.scale, layer.window
            )

        self._forward(token_ids, chunk.positions, chunk.token_rows, attend)

    def step(self, token_ids: Tensor, positions: Tensor, step: Step) -> Tensor:
        def attend(index: int, query: Tensor) -> Tensor:
            layer = self._layers[index]
            return self.ops.attend_step(query, self._keys[index], self._values[index], step, layer.scale, layer.window)

        rows = torch.arange(token_ids.shape[0], device=self._device)
        return F.linear(self._forward(token_ids, positions, rows, attend), self._final["head"])

    def sample(
        self, scores: Tensor, uniforms: Tensor | None, temperature: float, vocab_size: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        if top_p < 1:
            return choose(scores, uniforms, temperature, vocab_size, top_p)
        return self.ops.sample(scores, uniforms, temperature, vocab_size)

    def _forward(
        self, token_ids: Tensor, positions: Tensor, rows: Tensor, attend: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        """The final states (N, W) of tokens that are put into the cache."""
        ops, dtype, eps = self.ops, self.dtype, self._eps
        num_tokens = token_ids.shape[0]
        x = self._final["embedding"][token_ids].float()
        if self._embed_scale != 1:
            x = x * self._embed_scale
        delta: Tensor | None = None
        for index, layer in enumerate(self._layers):
            w = layer.weights
            x, normed = ops.add_rms_norm(x, delta, w["norm"], eps, dtype)
            qkv = F.linear(normed, w["qkv"], w.get("qkv_bias")).view(num_tokens, -1, self._head_dim)
            if "q_norm" in w:
                qkv = self._norm_heads(qkv, w)
            query = ops.rotate_and_store(
                qkv, self._phases[layer.rope], positions, rows, self._keys[index], self._values[index]
            )
            attended = attend(index, query)
            delta = F.linear(attended.reshape(num_tokens, -1), w["out"], w.get("out_bias"))
            if "after_attention" in w:
                delta = ops.add_rms_norm(delta.float(), None, w["after_attention"], eps, torch.float32)[1]
            x, normed = ops.add_rms_norm(x, delta, w["mlp_norm"], eps, dtype)
            delta = F.linear(ops.gated(F.linear(normed, w["gate_up"]), self._activation), w["down"])
            if "after_mlp" in w:
                delta = ops.add_rms_norm(delta.float(), None, w["after_mlp"], eps, torch.float32)[1]
        return ops.add_rms_norm(x, delta, self._final["norm"], eps, dtype)[1]

    def _norm_heads(self, qkv: Tensor, w: dict[str, Tensor]) -> Tensor:
        num_queries, num_keys = self._num_queries, self._num_keys
        parts = qkv.split((num_queries, num_keys, num_keys), dim=1)
        normed = []
        for part, weight in zip(parts, (w["q_norm"], w["k_norm"]), strict=False):
            flat = part.reshape(-1, self._head_dim).float()
            normed.append(self.ops.add_rms_norm(flat, None, weight, self._eps, self.dtype)[1].view(part.shape))
        return torch.cat((*normed, parts[2]), dim=1)

    def copy_rows(self, sources: list[int], targets: list[int], length: int) -> None:
        for cache in (self._keys, self._values):
            for layer in cache:
                layer[targets, :, :length] = layer[sources, :, :length]
