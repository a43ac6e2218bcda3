"""The functions beside matrix products: plain torch against loops, and kernels, in Triton's interpreter, against it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.decoders import make_chunk
from agents.ops import EVERYTHING, Step, TorchOps

OPS = TorchOps()
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def one_query(query, keys, values, visible, scale):
    """Attention of one head by its definition."""
    weights = torch.stack([(query @ keys[column]) * scale for column in visible]).softmax(0)
    return sum(weight * values[column] for weight, column in zip(weights, visible, strict=True))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(4, 2), (3, 3), (6, 1)]), st.sampled_from([EVERYTHING, 3]))
def test_a_step_attends_to_what_its_row_sees(seed, heads, window):
    queries, keys_heads = heads
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 5, keys_heads, 9, 4, generator=generator)
    query = torch.randn(3, queries, 4, generator=generator)
    lengths = torch.randint(1, 10, (3,), generator=generator)
    found = OPS.attend_step(query, keys, values, Step(lengths.int(), 9), 0.3, window)
    for row in range(3):
        visible = range(max(0, int(lengths[row]) - window), int(lengths[row]))
        for head in range(queries):
            shared = head // (queries // keys_heads)
            expected = one_query(query[row, head], keys[row, shared], values[row, shared], visible, 0.3)
            torch.testing.assert_close(found[row, head], expected, **CLOSE)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([EVERYTHING, 2]))
def test_a_chunk_attends_to_its_own_past(seed, window):
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 4, 1, 9, 4, generator=generator)
    rows, starts, counts = [3, 0], [2, 0], [3, 4]
    query = torch.randn(7, 2, 4, generator=generator)
    found = OPS.attend_chunk(query, keys, values, make_chunk(rows, starts, counts, CPU), 0.5, window)
    token = 0
    for row, start, count in zip(rows, starts, counts, strict=True):
        for position in range(start, start + count):
            visible = range(max(0, position + 1 - window), position + 1)
            for head in range(2):
                expected = one_query(query[token, head], keys[row, 0], values[row, 0], visible, 0.5)
                torch.testing.assert_close(found[token, head], expected, **CLOSE)
            token += 1


def test_rotation_keeps_what_positions_have_between_them():
    """A rotated query and key have the inner product of their distance, and columns are where they belong."""
    angles = torch.arange(12)[:, None] * torch.tensor([1.0, 0.1])
    phases = angles.cos(), angles.sin()
    qkv = torch.randn(1, 3, 4).expand(2, 3, 4).contiguous()
    keys, values = torch.zeros(2, 4, 1, 12, 4)
    early = OPS.rotate_and_store(qkv, phases, torch.tensor([2, 5]), torch.tensor([3, 1]), keys, values)
    first = early[1, 0] @ keys[3, 0, 2]
    later = OPS.rotate_and_store(qkv, phases, torch.tensor([8, 11]), torch.tensor([0, 1]), keys, values)
    torch.testing.assert_close(later[1, 0] @ keys[0, 0, 8], first, **CLOSE)
    torch.testing.assert_close(values[3, 0, 2], qkv[0, 2])
    assert int((values.abs().sum(-1) > 0).sum()) == 4


def test_norms_and_gates_by_their_formulas():
    x, delta, weight = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    total, normed = OPS.add_rms_norm(x, delta, weight, 1e-5, torch.bfloat16)
    torch.testing.assert_close(total, x + delta)
    expected = total / (total.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    torch.testing.assert_close(normed.float(), expected, rtol=2**-8, atol=1e-6)
    gate, up = torch.randn(2, 5, 6)
    silu = OPS.gated(torch.cat((gate, up), -1), "silu")
    torch.testing.assert_close(silu, gate / (1 + (-gate).exp()) * up, **CLOSE)
    gelu = OPS.gated(torch.cat((gate, up), -1), "gelu_tanh")
    exact = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * up
    torch.testing.assert_close(gelu, exact, rtol=0, atol=5e-3)


KERNELS = """
import itertools
import torch
from agents import triton_ops
from agents.decoders import make_chunk
from agents.ops import Step, TorchOps
plain, fused = TorchOps(), triton_ops.TritonOps()
torch.manual_seed(0)

def same(name, *args, tolerance=1e-5):
    found, expected = getattr(fused, name)(*args), getattr(plain, name)(*args)
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

for queries, heads, width in ((9, 3, 64), (16, 2, 128)):
    keys, values = torch.randn(2, 5, heads, 200, width)
    x, delta, weight = torch.randn(7, 3 * width), torch.randn(7, 3 * width), torch.randn(3 * width)
    same("add_rms_norm", x, delta, weight, 1e-5, torch.float32)
    same("add_rms_norm", x, None, weight, 1e-5, torch.float32)
    for activation in ("silu", "gelu_tanh"):
        same("gated", torch.randn(5, 3000), activation)
    qkv, phases = torch.randn(6, queries + 2 * heads, width), torch.randn(2, 200, width // 2)
    places = torch.tensor([3, 7, 150, 4, 8, 160]), torch.tensor([0, 1, 2, 3, 4, 0])
    caches = [[x.clone() for x in (keys, values)] for _ in range(2)]
    for ops, (k, v) in zip((plain, fused), caches, strict=True):
        rotated = ops.rotate_and_store(qkv, tuple(phases), *places, k, v)
    torch.testing.assert_close(rotated, plain.rotate_and_store(qkv, tuple(phases), *places, keys, values))
    for a, b in zip(*caches, strict=True):
        torch.testing.assert_close(a, b)
    step = Step(torch.tensor([1, 200, 64, 65, 130], dtype=torch.int32), 200)
    for programs, window in itertools.product((1, 512), (2**30, 50)):
        triton_ops._PROGRAMS = programs
        same("attend_step", torch.randn(5, queries, width), keys, values, step, 0.2, window)
    chunk = make_chunk([2, 0, 4], [0, 60, 130], [100, 1, 70], torch.device("cpu"))
    for window in (2**30, 5, 70):
        same("attend_chunk", torch.randn(171, queries, width), keys, values, chunk, 0.2, window)
logits, points = torch.randn(64, 9000) * 3, torch.rand(64, dtype=torch.float64)
for temperature, uniforms in itertools.product((1.0, 0.7), (points, None)):
    same("sample", logits, uniforms, temperature, 8990, tolerance=2e-5)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which comes with torch for GPUs")
def test_kernels_equal_plain_torch():
    """In Triton's interpreter, which runs kernels on a CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", KERNELS], env=environment, check=True)
