"""Which rollouts are computed together: few parts, little padding, no more tokens than memory is there for."""

from __future__ import annotations

from collections.abc import Sequence

TOKENS_A_PART = 1 / 32
"""What beginning a part costs, in tokens, for each token that it may have."""


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
