"""The compiled kernels round alike wherever they come from, and as they are written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from agents import tiny_kernels
from agents.sampling import choose

FLOATS = st.floats(-100.0, 100.0, width=32)
PROGRAM = """
import hashlib, numpy as np, torch
from agents import decoders
from agents.checkpoint import load_policy
from agents.decoders import make_chunk
from agents.fast_generation import FastGenerator

policy, codec = load_policy("tiny")
generator = FastGenerator(policy.model, codec)
generator.start(20, 1)
prompts = np.random.default_rng(0).integers(2, 250, (20, 30))
generator.extend(range(20), list(prompts))
turns = generator.sample(range(20), [12] * 20)
print(hashlib.sha256(b"".join(turn.token_ids.tobytes() + turn.logprobs.tobytes() for turn in turns)).hexdigest())
"""


@pytest.mark.slow
def test_code_that_was_kept_computes_what_code_that_was_just_compiled_does(tmp_path: Path) -> None:
    """To the last bit: else the first run on a machine would not be the second one's equal."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc"))
    assert first.stdout == second.stdout


@given(arrays(np.float32, st.integers(1, 40), elements=FLOATS))
def test_sums_and_maxima_are_those_of_all_numbers(x: np.ndarray) -> None:
    count, scale = len(x), float(np.abs(x).sum())
    assert tiny_kernels._max_of(x, count) == x.max()
    assert tiny_kernels._sum_of(x, count) == pytest.approx(float(x.astype(np.float64).sum()), abs=1e-5 * (1 + scale))
    product = float((x.astype(np.float64) ** 2).sum())
    assert tiny_kernels._dot(x, x, count) == pytest.approx(product, rel=1e-5, abs=1e-30)


@given(st.floats(-87.0, 0.0, width=32))
def test_exponentials_are_as_exact_as_it_says(x: float) -> None:
    assert float(tiny_kernels._exp(np.float32(x))) == pytest.approx(np.exp(np.float64(np.float32(x))), rel=2.4e-7)


@given(
    numbers=st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(any),
    point=st.integers(0, 62),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_p=st.sampled_from([0.1, 0.5, 0.77, 0.95, 1.0]),
    scale=st.sampled_from([0.25, 1.0]),
)
def test_a_word_is_chosen_as_in_the_reference(numbers, point, temperature, top_p, scale) -> None:
    """Many words are as probable as others; points and ``top_p`` are where rounding decides nothing."""
    probs = np.array(numbers, dtype=np.float32) * np.float32(scale)
    powers = np.array(numbers, dtype=np.float64) ** (1 / temperature)
    shares = powers / powers.sum()
    ranks = sorted(range(len(numbers)), key=lambda v: (-numbers[v], v))
    held = np.cumsum(shares[ranks])
    assume(np.abs(held - top_p).min() > 1e-5 or top_p == 1)
    kept = set(ranks[: 1 + int((held < top_p).sum())])
    uniform = (point + 0.5) / 63
    borders = np.cumsum([shares[v] if v in kept else 0.0 for v in range(len(numbers))])
    assume(np.abs(borders / borders[-1] - uniform).min() > 1e-5)
    expected, logprob = choose(
        torch.from_numpy(probs).log()[None],
        torch.tensor([uniform], dtype=torch.float64),
        temperature,
        len(probs),
        top_p,
    )
    token, found = tiny_kernels._choose(probs.copy(), uniform, temperature, top_p)
    assert token == expected.item()
    assert found == pytest.approx(logprob.item(), abs=1e-5)
    assert token in kept


def test_nothing_that_is_not_a_number_disappears() -> None:
    x = np.array([0.0, np.nan, 1.0], dtype=np.float32)
    assert np.isnan(tiny_kernels._exps(x, np.float32(1.0), 3))
    for top_p in (0.9, 1.0):
        assert np.isnan(tiny_kernels._choose(x.copy(), 0.5, 1.0, top_p)[1])


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 16), (64, 192), (256, 64), (64, 1024), (512, 1024)])
def test_a_product_is_that_of_numpy_for_any_number_of_rows(inputs: int, outputs: int) -> None:
    """Float32 sums of so many numbers of size 1 are off by less than 1e-5 for each."""
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=size).astype(np.float32) for size in ((33, inputs), (inputs, outputs)))
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    for count in (0, 1, 2, 3, 16, 17, 32, 33):
        y = np.full((33, outputs), np.nan, dtype=np.float32)
        tiny_kernels._linear(x, weight, y, count)
        assert np.allclose(y[:count], expected[:count], rtol=0, atol=1e-5 * inputs)
        assert np.isnan(y[count:]).all()
