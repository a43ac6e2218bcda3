"""How rollouts are cut into parts, against all ways in which they could be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.micro_batches import TOKENS_A_PART, micro_batches

sorted_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=8).map(sorted)


def cost(lengths: list[int], parts: list[slice], tokens: int) -> float:
    return sum(len(lengths[part]) * lengths[part][-1] + TOKENS_A_PART * tokens for part in parts)


def fits(lengths: list[int], part: slice, rows: int | None, tokens: int) -> bool:
    count = part.stop - part.start
    return count == 1 or (count <= (rows or count) and count * lengths[part][-1] <= tokens)


@given(sorted_lengths, st.sampled_from([None, 1, 2, 3]), st.integers(1, 300))
def test_no_other_cut_costs_less(lengths: list[int], rows: int | None, tokens: int) -> None:
    parts = micro_batches(lengths, rows=rows, tokens=tokens)
    count = len(lengths)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert all(fits(lengths, part, rows, tokens) for part in parts)
    others = []
    for number in range(count):
        for inner in itertools.combinations(range(1, count), number):
            other = [slice(*pair) for pair in itertools.pairwise((0, *inner, count))]
            if all(fits(lengths, part, rows, tokens) for part in other):
                others.append(cost(lengths, other, tokens))
    assert cost(lengths, parts, tokens) == pytest.approx(min(others))


@given(sorted_lengths, st.integers(1, 9))
def test_rows_alone_are_cut_one_after_the_other(lengths: list[int], rows: int) -> None:
    parts = micro_batches(lengths, rows=rows)
    sizes = [part.stop - part.start for part in parts]
    assert sum(sizes) == len(lengths)
    assert all(size == rows for size in sizes[:-1])
    assert 0 < sizes[-1] <= rows
    assert [part.start for part in parts] == list(np.cumsum([0, *sizes[:-1]]))


@given(st.lists(st.integers(1, 60), min_size=2, max_size=12).map(sorted), st.integers(1, 4), st.integers(30, 300))
def test_the_parts_are_those_of_every_process(lengths: list[int], num_processes: int, tokens: int) -> None:
    lengths = lengths[: len(lengths) // num_processes * num_processes]
    parts = micro_batches(lengths, tokens=tokens, num_processes=num_processes)
    for rank in range(num_processes):
        ours = lengths[rank::num_processes]
        assert sum(len(ours[part]) for part in parts) == len(ours)
        assert all(fits(ours, part, None, tokens) for part in parts)


@pytest.mark.parametrize("tokens", [8192, 16384])
def test_padding_is_under_a_tenth_where_lengths_differ_by_a_factor_of_eight(tokens: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        lengths = sorted(rng.integers(200, 1600, 64).tolist())
        computed = cost(lengths, micro_batches(lengths, tokens=tokens), 0)
        assert 1 - sum(lengths) / computed < 0.1 < 1 - sum(lengths) / (64 * lengths[-1])
