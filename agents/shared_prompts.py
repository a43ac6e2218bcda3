"""Prompts that several rows of a batch begin with, computed once where that is less work.

What a causal model makes of a prompt does not depend on what follows. The rollouts of a group begin with the same one:
its keys and values are computed once, repeated, and read by the rest of each rollout. That rest then attends with a
mask over keys that are repeated, where whole rows take the fast path, so it pays when prompts are a good part of the
rows, as worked examples and documents in the prompt are (docs/training.md has figures).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from agents.tiny import CACHE

AT_MOST = 0.8
"""Prompts are shared when the layers' work is at most this part of that of whole rows. The rest of an update, which is
the same both ways, brings measured ratios of times closer to 1 (`benchmarks.shared_prompts`)."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SharedPrompts:
    """U prompts of B rows: row b begins with the ``lengths[b]`` tokens of prompt ``of[b]``, which row
    ``rows[of[b]]`` also begins with, and ``rest`` more columns of each row are needed at most."""

    rows: Int[Tensor, " U"]
    of: Int[Tensor, " B"]
    lengths: Int[Tensor, " B"]
    longest: int
    shortest: int
    rest: int


def work(config: PretrainedConfig, tokens: float, pairs: float) -> float:
    """Multiplications in a layer of a Llama-like model for ``tokens`` and ``pairs`` of a query and a key."""
    config = config.get_text_config()
    heads, width = config.num_attention_heads, config.hidden_size
    head_dim = getattr(config, "head_dim", None) or width // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    projections = 2 * width * head_dim * (heads + key_heads)
    return tokens * (projections + 3 * width * config.intermediate_size) + pairs * 2 * heads * head_dim


def relative_work(config: PretrainedConfig, *, rows: int, columns: int, prompts: int, longest: int, rest: int) -> float:
    """The work of ``prompts`` of ``longest`` tokens, and for each of ``rows`` the ``rest`` after them, relative to that
    of ``rows`` of ``columns`` tokens."""
    pairs = prompts * longest**2 / 2 + rows * rest * (longest + rest)
    shared = work(config, prompts * longest + rows * rest, pairs)
    return shared / work(config, rows * columns, rows * columns**2 / 2)


def find_shared_prompts(
    config: PretrainedConfig,
    token_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
) -> SharedPrompts | None:
    """What rows have in common before their first token in ``loss_mask``; None if to share it does not pay, or if rows
    are not padded on the right."""
    ids, is_real, is_sampled = (x.cpu().numpy() for x in (token_ids, attention_mask, loss_mask))
    if (is_real[:, 1:] > is_real[:, :-1]).any():
        return None
    count, columns = ids.shape
    has_any = is_sampled.any(axis=1)
    lengths = np.where(has_any, is_sampled.argmax(axis=1), 1)
    last = np.where(has_any, columns - 1 - is_sampled[:, ::-1].argmax(axis=1), 1)
    of, rows = numbered(ids[row, :length].tobytes() for row, length in enumerate(lengths))
    # The last sampled token is not fed: nothing that is asked for follows it.
    longest, rest = int(lengths.max()), int((last - lengths).max())
    size = {"rows": count, "columns": columns, "prompts": len(rows), "longest": longest, "rest": rest}
    if relative_work(config, **size) > AT_MOST:
        return None
    device = token_ids.device
    on_device = (torch.from_numpy(x).to(device) for x in (rows, of, lengths))
    return SharedPrompts(*on_device, longest=longest, shortest=int(lengths.min()), rest=rest)


def numbered(keys: Iterable[Hashable]) -> tuple[Integers, Integers]:
    """The number of each key (B,) among the distinct ones, and where each of those stands first (U,)."""
    found: dict[Hashable, int] = {}
    first: list[int] = []
    numbers: list[int] = []
    for place, key in enumerate(keys):
        if key not in found:
            found[key] = len(found)
            first.append(place)
        numbers.append(found[key])
    return np.array(numbers, dtype=np.int64), np.array(first, dtype=np.int64)


def states_of_shared(
    model: PreTrainedModel, token_ids: Int[Tensor, "B T"], places: Int[Tensor, " N"], shared: SharedPrompts
) -> Float[Tensor, "N W"]:
    """What the output layer of ``model`` reads at ``places`` in the rows, one after the other, prompts computed once.

    Prompts are padded on the left, so that the rest of a row follows its prompt, as sliding windows need it.
    """
    device, width = token_ids.device, token_ids.shape[1]
    body: Any = model.get_decoder()
    cache = DynamicCache()
    options = {CACHE: cache, "use_cache": True}
    lengths = shared.lengths
    positions = torch.arange(shared.longest, device=device) - (shared.longest - lengths[shared.rows])[:, None]
    is_real = positions >= 0
    positions = positions.clamp_min(0)
    prompts = token_ids[shared.rows].gather(1, positions)
    is_padded = shared.shortest < shared.longest
    where = {"attention_mask": is_real.long(), "position_ids": positions} if is_padded else {}
    first = body(input_ids=prompts, **where, **options).last_hidden_state[:, -1:]
    states = first.index_select(0, shared.of)
    if shared.rest:
        cache.batch_select_indices(shared.of)
        positions = lengths[:, None] + torch.arange(shared.rest, device=device)
        where = {"position_ids": positions}
        if is_padded:
            is_real = is_real[shared.of]
            where["attention_mask"] = torch.cat((is_real, is_real.new_ones(positions.shape)), dim=1).long()
        rest = token_ids.gather(1, positions.clamp_max(width - 1))
        states = torch.cat((states, body(input_ids=rest, **where, **options).last_hidden_state), dim=1)
    rows = places // width
    return states.flatten(0, 1).index_select(0, rows * states.shape[1] + places % width + 1 - lengths[rows])
