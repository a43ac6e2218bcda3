"""What a causal language model makes of rows of tokens, however padded, without a cache of its own."""

from __future__ import annotations

import inspect

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from agents.shared_prompts import find_shared_prompts, states_of_shared

PLAIN_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
"""Model types whose logits are the last states times one matrix, unless their configuration says more."""


def states_at(
    model: PreTrainedModel,
    token_ids: Tensor,
    attention_mask: Tensor,
    loss_mask: Tensor,
    places: Tensor,
    share_prompts: bool,
) -> Tensor:
    """(N, W): what the output layer reads at ``places``, where tokens in ``loss_mask`` are chosen."""
    if share_prompts and has_plain_head(model):
        shared = find_shared_prompts(model.config, token_ids, attention_mask, loss_mask)
        if shared is not None:
            return states_of_shared(model, token_ids, places, shared)
    return rows_at(last_states(model, token_ids, attention_mask), places)


def forward_model(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    *,
    columns: Int[Tensor, " K"],
    output_hidden_states: bool = False,
) -> ModelOutput:
    """Run ``model`` without a cache; ``logits`` (B, K, V) are those of ``columns``, and positions count real tokens."""
    keeps = takes_logits_to_keep(model)
    output = model(
        input_ids=token_ids,
        **_attention(attention_mask),
        use_cache=False,
        output_hidden_states=output_hidden_states,
        **({"logits_to_keep": columns} if keeps else {}),
    )
    if not keeps:
        output["logits"] = output["logits"][:, columns]
    return output


def last_states(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T W"]:
    """What the output layer of ``model`` reads."""
    if has_plain_head(model):
        body = model.get_decoder()
        return body(input_ids=token_ids, **_attention(attention_mask), use_cache=False).last_hidden_state
    # Logits are not wanted; one column is the least that can be computed.
    columns = torch.zeros(1, dtype=torch.int64, device=token_ids.device)
    output = forward_model(model, token_ids, attention_mask, columns=columns, output_hidden_states=True)
    return output["hidden_states"][-1]


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether logits are the last states times the output layer's weight, and nothing else."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    return (
        config.model_type in PLAIN_HEADS
        and not getattr(config, "final_logit_softcapping", None)
        and type(head) is nn.Linear
        and head.bias is None
    )


def _attention(attention_mask: Bool[Tensor, "B T"]) -> dict[str, Tensor]:
    """What tells a model which tokens are real. Padding on the right needs no mask, because nobody looks ahead."""
    if bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()):
        return {}
    position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
    return {"attention_mask": attention_mask.long(), "position_ids": position_ids}


def takes_logits_to_keep(model: PreTrainedModel) -> bool:
    """Whether ``model`` can compute logits for some columns only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def rows_at(x: Tensor, places: Tensor) -> Tensor:
    """(N, ...): what (B, T, ...) ``x`` holds at ``places`` in its rows, one after the other."""
    return x.flatten(0, 1).index_select(0, places)
