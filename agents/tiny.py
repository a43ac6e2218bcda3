"""A tiny causal language model that can copy: a small pre-norm transformer with a pointer head.

A model of some 0.2 M parameters learns what to copy within seconds only if how to copy is built in. The last layer is
therefore a pointer sentinel mixture (Merity et al. 2016, arXiv 1609.07843, equation 5), except that a pointer gives its
weight to the token *after* the one it points at, as an induction head does:

    p(w | x_1..x_t) = a_0 softmax(E h_t)_w + sum over j < t with x_{j+1} = w of a_j
    a = softmax([s . h_t + b, q_t . k_1 / sqrt(d), ..., q_t . k_{t-1} / sqrt(d)])

Importing this module registers the model, so ``AutoModelForCausalLM.from_pretrained`` finds it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

# transformers 5.24 renamed past_key_values to cache, in arguments and outputs.
CACHE = "cache" if "cache" in {f.name for f in dataclasses.fields(CausalLMOutputWithPast)} else "past_key_values"


class TinyConfig(PretrainedConfig):
    """Sizes of a ``TinyForCausalLM``.

    ``num_hidden_layers`` counts every layer that owns a slice of the key-value cache: all transformer blocks and, last,
    the pointer head. ``max_position_embeddings`` is advice to callers; rotary positions have no limit of their own.
    """

    model_type = "search_gym_tiny"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    vocab_size: int = 512
    hidden_size: int = 64
    intermediate_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 2
    rotary_base: float = 1000.0
    initializer_range: float = 0.1
    max_position_embeddings: int = 4096
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = 1


def rotary_phases(position_ids: Tensor, head_dim: int, base: float) -> Tensor:
    """Unit complex numbers (B, T, 1, 1, head_dim / 2) of rotary positions (Su et al. 2021, arXiv 2104.09864)."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, :, None, None, None] * base**-exponents
    return torch.polar(torch.ones_like(angles), angles)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: TinyConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        width = config.hidden_size
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, phases: Tensor, bias: Tensor, cache: Cache | None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.num_heads, -1)
        pairs = torch.view_as_complex(qkv[:, :, :2].unflatten(-1, (-1, 2)))
        query, key = torch.view_as_real(pairs * phases).flatten(-2).permute(2, 0, 3, 1, 4)
        value = qkv[:, :, 2].transpose(1, 2)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.relu(self.up(self.mlp_norm(x))))


class PointerHead(nn.Module):
    """Log-probabilities of the next token: the vocabulary's softmax mixed with copies from the context.

    Attention over earlier columns and a sentinel: a column's weight goes to the token that follows it there, the
    sentinel's to the softmax. Queries and keys begin as multiples of the identity, so that a token points at its own
    earlier occurrences, and copying what followed them need not be learned.

    The context lives in the cache as one more layer: keys are the pointer's keys (B, 1, S, width), values are the token
    ids (B, 1, S, 1) as float32, exact below 2**24.
    """

    def __init__(self, config: TinyConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.query = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.key = nn.Parameter(torch.empty(config.hidden_size, config.hidden_size))
        self.sentinel = nn.Linear(config.hidden_size, 1)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Equal normed states score 2 sqrt(width), unequal ones about 0, the sentinel sqrt(width)."""
        width = self.key.shape[0]
        init.eye_(self.key)
        init.copy_(self.query, 2 * torch.eye(width))
        init.zeros_(self.sentinel.weight)
        init.constant_(self.sentinel.bias, math.sqrt(width))

    def extend(self, hidden: Tensor, input_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """Add the new tokens to the context; returns its keys (B, S, width) and token ids (B, S)."""
        key = hidden @ self.key
        if cache is None:
            return key, input_ids
        keys, values = cache.update(key[:, None], input_ids[:, None, :, None].float(), self.layer_idx)
        return keys[:, 0], values[:, 0, :, 0].long()

    def forward(self, hidden: Tensor, logits: Tensor, keys: Tensor, next_ids: Tensor, bias: Tensor) -> Tensor:
        """(B, T, V) log-probabilities for ``hidden`` (B, T, width).

        ``logits`` (B, T, V) are the vocabulary's, ``next_ids`` (B, S) what pointing at a column copies, and ``bias``
        (B or 1, T, S) hides columns.
        """
        query = hidden @ self.query / math.sqrt(keys.shape[-1])
        scores = torch.cat((self.sentinel(hidden), query @ keys.transpose(1, 2) + bias), dim=-1)
        weights = scores.softmax(dim=-1)
        index = next_ids[:, None, :].expand(-1, hidden.shape[1], -1)
        probs = (logits.softmax(dim=-1) * weights[..., :1]).scatter_add(-1, index, weights[..., 1:])
        return (probs + torch.finfo(probs.dtype).tiny).log()


class TinyForCausalLM(PreTrainedModel, GenerationMixin):
    """The tiny policy. ``logits`` are log-probabilities, hence logits for any temperature."""

    config_class = TinyConfig
    config: TinyConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        blocks = config.num_hidden_layers - 1
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer_idx) for layer_idx in range(blocks))
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.pointer = PointerHead(config, blocks)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PointerHead):
            module.reset_parameters()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities of the next token at every position asked for.

        Args:
            input_ids: (B, T) new tokens.
            attention_mask: (B, P + T), true or 1 where a column, of the P in the cache or the T new ones, is a real
                token; zeros may be anywhere. None: all are real.
            position_ids: (B, T); by default each token's rank among the real tokens of its row.
            past_key_values: the cache of the P earlier columns, extended in place; older transformers' name of `cache`.
            use_cache: return a cache; by default one is returned if and only if one is given.
            output_hidden_states: return embeddings, the output of each block, and last the normed final state.
            labels: (B, T), as ``input_ids`` with -100 where there is no loss; they are shifted here.
            logits_to_keep: compute logits for the last n positions only (0: all), or for these indices.
            cache: the cache of the P earlier columns, extended in place.

        Raises:
            ValueError: ``attention_mask`` does not cover exactly the cached and the new columns.
        """
        batch, length = input_ids.shape
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is not None and attention_mask.shape != (batch, past + length):
            raise ValueError(
                f"expected an attention_mask of shape {(batch, past + length)} over {past} cached and {length} new "
                f"columns, got {tuple(attention_mask.shape)}; do: keep a 0 for each masked column"
            )
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1)[:, past:] - 1).clamp_min(0)

        hidden = self.embed_tokens(input_ids) * math.sqrt(self.config.hidden_size)
        columns = torch.arange(past + length, device=input_ids.device)
        own = columns == columns[past:, None]
        earlier = (columns < columns[past:, None])[None]
        if attention_mask is not None:
            earlier = earlier & (attention_mask != 0)[:, None]
        # Every token sees itself, masked or not, so that no row of the attention is empty and becomes NaN.
        attention_bias, pointer_bias = (_bias(visible, hidden.dtype) for visible in (earlier | own, earlier))
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        phases = rotary_phases(position_ids, head_dim, self.config.rotary_base)
        states = [hidden]
        for block in self.blocks:
            hidden = block(hidden, phases, attention_bias[:, None], cache)
            states.append(hidden)
        hidden = self.norm(hidden)
        states.append(hidden)

        keys, context_ids = self.pointer.extend(hidden, input_ids, cache)
        next_ids = _next_ids(context_ids, attention_mask)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        kept_hidden = hidden[:, kept]
        logits = self.pointer(kept_hidden, self.lm_head(kept_hidden), keys, next_ids, pointer_bias[:, kept])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=tuple(states) if output_hidden_states else None,
            **{CACHE: cache},  # pyright: ignore[reportArgumentType]
        )


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where ``visible``, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -math.inf)


def _next_ids(context_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, S): the id of the next real token after each column; after the last one, any valid id."""
    if attention_mask is None:
        return context_ids.roll(-1, dims=1)
    last = context_ids.shape[1] - 1
    columns = torch.arange(last + 1, device=context_ids.device)
    real = columns.where(attention_mask != 0, last)
    following = real.roll(-1, dims=1).flip(1)
    following[:, 0] = last
    return context_ids.gather(1, following.cummin(dim=1).values.flip(1))


AutoConfig.register(TinyConfig.model_type, TinyConfig)
AutoModelForCausalLM.register(TinyConfig, TinyForCausalLM)
