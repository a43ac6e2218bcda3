"""Which rollouts are computed together: few parts, little padding, no more tokens than memory is there for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig

from agents import shared_prompts
from agents.rollout import RolloutBatch
from agents.shared_prompts import numbered, relative_work

TOKENS_A_PART = 1 / 32
"""What beginning a part costs, in tokens, for each token that it may have."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of tokens in rows that are to be cut into parts, on the host.

    ``prompts`` are the lengths of what the rows of one of ``groups`` begin with in common, ``lengths`` those of all.
    """

    lengths: Int[Tensor, " B"]
    prompts: Int[Tensor, " B"]
    groups: Int[Tensor, " B"]

    @classmethod
    def of(cls, batch: RolloutBatch) -> Sizes:
        """The sizes of the rollouts in ``batch``."""
        lengths, responses = (mask.sum(dim=1).cpu() for mask in (batch.attention_mask, batch.response_mask))
        return cls(lengths, lengths - responses, batch.group_ids.cpu())

    def __getitem__(self, rows: Tensor) -> Sizes:
        return Sizes(self.lengths[rows], self.prompts[rows], self.groups[rows])

    def order(
        self, shares_prompts_of: PretrainedConfig | None = None, num_processes: int = 1
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The order in which rows are cut into parts, and what they cost, in tokens, in this order: ascending.

        ``shares_prompts_of``: a model, over ``num_processes``, that computes what a group begins with once. Where that
        pays, the rows of a group stand in a row, and each costs the longest rest of them and its share of the prompt.
        """
        costs = None if shares_prompts_of is None else self._shared(shares_prompts_of, num_processes)
        if costs is None:
            order = self.lengths.argsort(stable=True)
            return order, self.lengths[order]
        order = torch.from_numpy(np.lexsort((self.groups, costs)))
        return order, costs[order]

    def _shared(self, config: PretrainedConfig, num_processes: int) -> Tensor | None:
        of, first = (torch.from_numpy(x) for x in numbered(self.groups.tolist()))
        rests = torch.zeros(len(first), dtype=torch.int64)
        rests = rests.scatter_reduce(0, of, self.lengths - self.prompts, "amax")
        rows = of.bincount()
        copies = rows.clamp_max(num_processes)  # each process computes the prompts of its own rows
        size = {"rows": len(of), "columns": int(self.lengths.max()), "prompts": int(copies.sum())}
        size |= {"longest": int(self.prompts.max()), "rest": int(rests.max())}
        if relative_work(config, **size) > shared_prompts.AT_MOST:
            return None
        return (rests - (-self.prompts[first] * copies // rows))[of]


def micro_batches(
    lengths: Sequence[int], *, rows: int | None = None, tokens: int | None = None, num_processes: int = 1
) -> list[slice]:
    """The parts into which a process cuts its rollouts.

    ``lengths`` are those of all processes' rollouts, in ascending order; process p has every ``num_processes``-th of
    them from p on, and the slices are of these. All processes have the same parts, because sharded weights are gathered
    for each.

    A part has at most ``rows`` rollouts. ``tokens``: and rollouts times the longest of them is at most this, unless it
    is a single one. Then the parts are those of least cost, in tokens computed, padding included, and
    `TOKENS_A_PART` of ``tokens`` for every part.
    """
    longest = list(lengths[num_processes - 1 :: num_processes])
    if len(longest) * num_processes < len(lengths):
        longest.append(lengths[-1])
    count = len(longest)
    most_rows = min(rows or count, count)
    if tokens is None:
        return [slice(start, min(start + most_rows, count)) for start in range(0, count, max(1, most_rows))]
    costs, starts = [0.0], [0]
    for stop in range(1, count + 1):
        most = max(1, min(most_rows, tokens // longest[stop - 1]))
        cost, start = min(
            (costs[start] + (stop - start) * longest[stop - 1] + TOKENS_A_PART * tokens, start)
            for start in range(max(0, stop - most), stop)
        )
        costs.append(cost)
        starts.append(start)
    parts = []
    while count:
        parts.append(slice(starts[count], count))
        count = starts[count]
    return parts[::-1]
