"""``python -m agents.baselines``: its files, its errors, and a run that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import small_models
import tyro
from rich.console import Console
from scripted_server import Reply, ScriptedServer, chat_reply

from agents.baselines.run import BYTES_PER_TOKEN, PromptingConfig, main
from agents.endpoint import EndpointConfig
from agents.transcripts import METRICS
from search_gym import ByteCodec, tinywiki
from search_gym.endpoint import EndpointError
from search_gym.errors import OptionError, UnknownNameError

ROOT = Path(__file__).parents[1]
NAMES = ("Ada", "Ben", "Cleo", "Dora", "Egon", "Fritz", "Gerd")


@pytest.fixture
def files(tmp_path):
    """Seven questions, "Where was Ada born?" and so on, each with its passage."""
    questions, corpus = tmp_path / "questions.jsonl", tmp_path / "corpus.jsonl"
    rows = [
        {"id": f"q{i}", "question": f"Where was {name} born?", "golden_answers": [f"Port {name}"], "metadata": {}}
        for i, name in enumerate(NAMES)
    ]
    passages = [
        {"id": f"d{i}", "contents": f'"{name}"\n{name} was born in Port {name}.'} for i, name in enumerate(NAMES)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus.write_text("".join(json.dumps(row) + "\n" for row in passages))
    return questions, corpus


@pytest.fixture
def quiet():
    return Console(quiet=True)


def config_for(files, run_dir, *, url="", model="", **options):
    questions, corpus = files
    endpoint = EndpointConfig(url, "the-model", timeout=60.0, retries=1, backoff=0.01) if url else EndpointConfig()
    options = {"method": "rag", "split": "all", "batch_size": 3, "num_examples": 0, **options}
    return PromptingConfig(
        model=model, endpoint=endpoint, questions=f"jsonl:{questions}", corpus=corpus, run_dir=run_dir, **options
    )


def name_in(request):
    """Whom a request asks about."""
    (name,) = [name for name in NAMES if f"Question: Where was {name} born?" in request.text]
    return name


def knows(request, number):
    """A model that reads well, except about Ben."""
    name = name_in(request)
    return chat_reply(" nowhere" if name == "Ben" else f" Port {name}", num_tokens=2 + len(name))


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "transcripts.jsonl").read_text().splitlines()]


def test_the_files_are_those_of_an_evaluation(files, tmp_path, quiet):
    with ScriptedServer(knows) as server:
        summary = main(config_for(files, tmp_path / "run", url=server.url), quiet)
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
    assert set(summary) == {"command", "config", "seed", "num_questions", "metrics"}
    means = {metric: summary["metrics"]["all"][metric]["mean"] for metric in METRICS}
    assert means == {
        "em": pytest.approx(6 / 7),
        "f1": pytest.approx(6 / 7),
        "subem": pytest.approx(6 / 7),
        "searches": 1.0,
        "valid_turns": 1.0,
        "truncated": 0.0,
        "sampled_tokens": pytest.approx(sum(2 + len(name) for name in NAMES) / 7),
    }
    rows = rows_of(tmp_path / "run")
    assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(7)]
    for row, name in zip(rows, NAMES, strict=True):
        assert row["label"] == "rag"
        assert row["completions"] == [" nowhere" if name == "Ben" else f" Port {name}"]
        assert len(row["tokens"]) == len(row["token_ids"]) == row["spans"][-1]["stop"]
        assert f'Doc 1(Title: "{name}") {name} was born in Port {name}.' in "".join(row["tokens"])
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["method"], config["endpoint"]["model"]) == ("rag", "the-model")


def test_what_has_ended_survives_a_failing_endpoint_and_is_not_asked_again(files, tmp_path, quiet):
    """Egon's question is in the second batch of three, whose completions are asked for together."""

    def fails(request, number):
        return Reply(b"out of memory", status=500) if name_in(request) == "Egon" else knows(request, number)

    run_dir = tmp_path / "run"
    with ScriptedServer(fails) as server, pytest.raises(EndpointError, match=r"status 500 in 2 tries.*out of memory"):
        main(config_for(files, run_dir, url=server.url), quiet)
    first = rows_of(run_dir)
    assert {row["question_id"] for row in first} == {"q0", "q1", "q2"}
    assert not (run_dir / "summary.json").exists()
    with ScriptedServer(knows) as server:
        config = config_for(files, run_dir, url=server.url)
        with pytest.raises(OptionError, match=r"other values of \['endpoint'\]"):
            main(replace(config, resume=True), quiet)  # another address may be another model
    with ScriptedServer(knows) as server:
        saved = json.loads((run_dir / "config.json").read_text())
        saved["endpoint"]["url"] = server.url
        (run_dir / "config.json").write_text(json.dumps(saved))
        summary = main(replace(config_for(files, run_dir, url=server.url), resume=True), quiet)
        assert sorted(map(name_in, server.requests)) == ["Dora", "Egon", "Fritz", "Gerd"]
    assert [row["question_id"] for row in rows_of(run_dir)] == [f"q{i}" for i in range(7)]
    assert summary["metrics"]["all"]["em"]["mean"] == pytest.approx(6 / 7)


def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_files(files, tmp_path, quiet):
    """SIGKILL while the endpoint keeps the fifth question waiting."""
    stalled, go_on = threading.Event(), threading.Event()

    def respond(request, number):
        if name_in(request) == "Egon" and not go_on.is_set():
            stalled.set()
            go_on.wait(300)
        return knows(request, number)

    with ScriptedServer(respond) as server:
        config = config_for(files, tmp_path / "killed", url=server.url)
        command = [
            *(sys.executable, "-m", "agents.baselines", "rag", "--endpoint", server.url),
            *("--endpoint-model", "the-model", "--endpoint-timeout", "60", "--endpoint-retries", "1"),
            *("--endpoint-backoff", "0.01", "--questions", config.questions, "--corpus", str(config.corpus)),
            *("--split", "all", "--batch-size", "3", "--num-examples", "0", "--run-dir", str(config.run_dir)),
        ]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            try:
                assert stalled.wait(240), (tmp_path / "log").read_text()
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
        assert {row["question_id"] for row in rows_of(config.run_dir)} == {"q0", "q1", "q2"}
        with (config.run_dir / "transcripts.jsonl").open("a") as file:
            file.write('{"question_index": 3, "half a')  # as a kill in the middle of a write leaves it
        go_on.set()
        asked = len(server.requests)
        resumed = main(replace(config, resume=True), quiet)
        assert {name_in(request) for request in server.requests[asked:]} == {"Dora", "Egon", "Fritz", "Gerd"}
        whole = main(replace(config, run_dir=tmp_path / "whole"), quiet)
    assert (config.run_dir / "transcripts.jsonl").read_bytes() == (tmp_path / "whole/transcripts.jsonl").read_bytes()
    assert resumed["metrics"] == whole["metrics"]


@pytest.fixture
def model(tmp_path):
    tokenizer = small_models.tokenizer()
    small_models.llama(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_local_run_repeats_its_batches(files, tmp_path, quiet, model, temperature):
    """The tokenizer of nine words cannot spell turns, so the transcripts are in bytes."""
    options = {"model": model, "codec": "byte", "temperature": temperature, "max_turn_tokens": 6, "method": "react"}
    config = config_for(files, tmp_path / "whole", **options)
    whole = main(config, quiet)
    text = (tmp_path / "whole/transcripts.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    for kept in (0, 1, 4, 7):
        again = replace(config, run_dir=tmp_path / f"again{kept}", resume=True)
        again.run_dir.mkdir()
        (again.run_dir / "config.json").write_text((tmp_path / "whole/config.json").read_text())
        (again.run_dir / "transcripts.jsonl").write_text("".join(lines[:kept]) + lines[-1][:20])
        assert main(again, quiet)["metrics"] == whole["metrics"]
        assert (again.run_dir / "transcripts.jsonl").read_text() == text
    row = json.loads(lines[0])
    assert row["sampled_tokens"] >= len(row["completions"])


def test_limits_are_in_bytes_where_the_codec_is(files, tmp_path):
    config = config_for(files, tmp_path, url="http://h/v1", max_turn_tokens=10, max_observation_tokens=20, top_k=5)
    in_tokens, in_bytes = config.env(tinywiki.codec()), config.env(ByteCodec())
    for name, value in (("max_turn_tokens", 20), ("max_observation_tokens", 20), ("max_context_tokens", 8192)):
        assert getattr(in_tokens, name) == value
        assert getattr(in_bytes, name) == BYTES_PER_TOKEN * value
    assert (in_tokens.top_k, in_tokens.max_turns, in_tokens.questions) == (5, 4, config.questions)


def test_what_cannot_be_run(files, tmp_path, quiet):
    run_dir = tmp_path / "run"
    with pytest.raises(UnknownNameError, match="got 'raect'; did you mean 'react'"):
        main(config_for(files, run_dir, url="http://h/v1", method="raect"), quiet)
    for wrong in ({}, {"url": "http://h/v1", "model": "m"}):
        with pytest.raises(OptionError, match="expected one model, got --model"):
            config_for(files, run_dir, **wrong)
    for name in ("limit", "batch_size"):
        with pytest.raises(OptionError, match=f"{name} >= 1, got 0"):
            config_for(files, run_dir, url="http://h/v1", **{name: 0})
    with pytest.raises(UnknownNameError, match="no-such-model"):
        main(config_for(files, run_dir, model="/no-such-model"), quiet)
    with pytest.raises(OptionError, match="0 to 3 examples, got 4"):
        main(config_for(files, run_dir, url="http://h/v1", num_examples=4), quiet)
    assert not run_dir.exists()


def test_a_run_is_not_resumed_with_other_options(files, tmp_path, quiet):
    with ScriptedServer(knows) as server:
        config = config_for(files, tmp_path / "run", url=server.url, limit=2)
        main(config, quiet)
        count = len(server.requests)
        text = (tmp_path / "run/transcripts.jsonl").read_text()
        for change in ({"method": "direct"}, {"top_k": 1}, {"temperature": 0.5}):
            with pytest.raises(OptionError, match=rf"other values of \['{next(iter(change))}'\]"):
                main(replace(config, resume=True, **change), quiet)
        assert (tmp_path / "run/transcripts.jsonl").read_text() == text
        patient = replace(config.endpoint, retries=9, timeout=9.0, concurrency=2)
        main(replace(config, resume=True, endpoint=patient), quiet)
        assert len(server.requests) == count
        main(config, quiet)
        assert len(server.requests) == 2 * count


def test_the_command_line_reads_what_the_documentation_shows():
    config = tyro.cli(
        PromptingConfig,
        args=[
            *(
                "ircot",
                "--endpoint",
                "http://localhost:8000/v1",
                "--endpoint-model",
                "m",
                "--endpoint-api",
                "completions",
            ),
            *(
                "--questions",
                "jsonl:q",
                "--corpus",
                "c",
                "--split",
                "all",
                "--limit",
                "5",
                "--run-dir",
                "r",
                "--resume",
            ),
        ],
    )
    assert (config.method, config.endpoint.api, config.limit, config.resume) == ("ircot", "completions", 5, True)
