"""Real retrieval servers that die, stall and talk nonsense; what their client and a training run make of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from test_resume import config, rows, weights

from agents import algorithms
from agents.tasks import EnvConfig
from agents.trainer import Trainer
from agents.training_state import read_state
from search_gym import retrievers, tinywiki
from search_gym.errors import PartialRetrievalError, RetrievalError
from search_gym.retrievers import Document
from tests.retrieval_servers import ROOT, ServerProcess, faulty, serve, write_corpus

FAST = {"backoff": 0.01, "retries": 2, "timeout": 60.0}
BRIEF = {**FAST, "timeout": 1.0}  # for servers that take longer; others have as long as a busy machine needs


def count(server: ServerProcess) -> int:
    return int(httpx2.get(f"{server.url}/count", trust_env=False).text)


@pytest.mark.parametrize(
    "faults", ["reset,closed", "truncated,length too long", "no HTTP,502", "slow", "dribble", "503,429"]
)
def test_a_fault_that_passes_is_outlasted(faults: str) -> None:
    limits = BRIEF if faults in ("slow", "dribble") else FAST
    with faulty(faults) as server, closing(retrievers.load("http", url=server.url, **limits)) as retriever:
        ((first, second),) = retriever.search(["a"], 2)
        assert (first.doc_id, first.title, second.score) == ("d0", "Title 0", 0.5)
        assert count(server) == len(faults.split(",")) + 1


@pytest.mark.parametrize(
    ("fault", "tries", "words"),
    [
        ("no JSON", 1, "an answer that cannot be used: expected JSON"),
        ("not UTF-8", 1, "an answer that cannot be used: expected JSON"),
        ("HTML", 1, "Welcome to nginx!"),
        ("no result", 1, 'expected an object {"result": [...]}'),
        ("too few lists", 1, "expected 1 lists of documents, got 0"),
        ("NaN", 1, "NaN is not JSON"),
        ("an error with status 200", 1, "index is loading"),
        ("length too short", 1, "an answer that cannot be used: expected JSON"),
        ("redirect", 1, "status 307 to 'http://127.0.0.1:9/retrieve'"),
        ("500", 1, "status 500 with 'Internal Server Error'"),
        ("422", 1, "do: lower batch_size or k"),
        ("truncated", 3, "RemoteProtocolError"),
        ("length too long", 3, "RemoteProtocolError"),
        ("no HTTP", 3, "RemoteProtocolError"),
        ("closed", 3, "RemoteProtocolError"),
        ("reset", 3, "Error"),
        ("slow", 3, "no answer within 1.0 s (ReadTimeout)"),
        ("dribble", 3, "no whole answer within 1.0 s"),
        ("502", 3, "status 502 with 'Bad Gateway'"),
    ],
)
def test_a_fault_that_stays_is_named(fault: str, tries: int, words: str) -> None:
    limits = BRIEF if fault in ("slow", "dribble") else FAST
    with faulty(*[fault] * 3) as server, closing(retrievers.load("http", url=server.url, **limits)) as retriever:
        with pytest.raises(RetrievalError) as caught:
            retriever.search(["a"], 3)
        assert f"in {tries} {'try' if tries == 1 else 'tries'}, the last one: " in str(caught.value)
        assert words in str(caught.value)
        assert count(server) == tries


def test_nobody_listens() -> None:
    with (
        closing(retrievers.load("http", url="http://127.0.0.1:9", **FAST)) as retriever,
        pytest.raises(RetrievalError, match="in 3 tries, the last one: ConnectError"),
    ):
        retriever.search(["a"], 1)


def test_a_server_that_is_killed_in_the_middle_of_a_batch_and_restarted(tmp_path: Path) -> None:
    """Four batches of which the second is searched for when the server dies: its retries find the new one."""
    log = tmp_path / "log"
    (tmp_path / "q2").touch()
    server = serve(f"tests.retrieval_servers:troubled(log={log}, hold={tmp_path})")
    with server:
        port = server.port
        options = {"batch_size": 2, "concurrency": 1, "backoff": 0.5, "retries": 100, "timeout": 60.0}
        with closing(retrievers.load("http", url=server.url, **options)) as retriever:
            queries = [f"q{i}" for i in range(8)]
            found: list[Any] = []
            thread = threading.Thread(target=lambda: found.extend(retriever.search(queries, 1)))
            thread.start()
            while not log.exists() or "q2" not in log.read_text():
                time.sleep(0.005)
            server.kill()
            with serve(f"tests.retrieval_servers:troubled(log={log})", port=port):
                thread.join(300)
            assert found == [[Document(query, "", query, 1.0)] for query in queries]
    asked = log.read_text().split()
    assert [asked.count(query) for query in queries] == [1, 1, 2, 2, 1, 1, 1, 1]


def test_a_server_that_is_killed_for_good_answers_in_part(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "q1").touch()
    with serve(f"tests.retrieval_servers:troubled(log={log}, hold={tmp_path})") as server:
        options = {**FAST, "batch_size": 1, "concurrency": 1, "breaker_failures": 1}
        with closing(retrievers.load("http", url=server.url, **options)) as retriever:
            caught: list[Exception] = []

            def search() -> None:
                try:
                    retriever.search(["q0", "q1", "q2"], 1)
                except RetrievalError as error:
                    caught.append(error)

            thread = threading.Thread(target=search)
            thread.start()
            while not log.exists() or "q1" not in log.read_text():
                time.sleep(0.005)
            server.kill()
            thread.join(300)
            (error,) = caught
            assert isinstance(error, PartialRetrievalError)
            first, second, third = error.results
            assert first == [Document("q0", "", "q0", 1.0)]
            assert isinstance(second, RetrievalError)
            assert "in 3 tries" in str(second)
            assert isinstance(third, RetrievalError)
            assert "got 1 failures in a row" in str(third)  # the breaker is open


# Training


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("wiki") / "corpus.jsonl", tinywiki.load("train").documents)


@pytest.fixture
def server(corpus: Path) -> Iterator[ServerProcess]:
    with serve("bm25", "--corpus", str(corpus)) as process:
        yield process


def options(name: str, run_dir: Path, server: ServerProcess, **env: Any) -> Any:
    retriever = f"http(url={server.url}, retries=1, backoff=0.01, breaker_seconds=0)"
    environment = EnvConfig(retriever=retriever, retrieval_timeout=60.0, reward="format", **env)
    return config(name, run_dir, updates=4, save_every=100, group_size=2, env=environment)  # pairs tie often


@pytest.mark.parametrize("name", ["ppo", "dapo"])
def test_a_run_whose_server_dies_stops_with_its_state_and_goes_on_exactly(
    name: str, tmp_path: Path, server: ServerProcess, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server dies in the third update of PPO, and in DAPO after the first of several rounds of an update."""
    train = algorithms.load(name).train
    alone = options(name, tmp_path / "alone", server)
    collect = Trainer.collect
    rounds: list[int] = []

    def counted(run: Trainer) -> Any:
        rounds.append(run.update)
        return collect(run)

    monkeypatch.setattr(Trainer, "collect", counted)
    train(alone)
    call = 2 if name == "ppo" else next(i for i in range(1, len(rounds)) if rounds[i] == rounds[i - 1] > 0)
    failing = rounds[call]

    broken = replace(alone, run_dir=tmp_path / "broken")

    def killed(run: Trainer) -> Any:
        rounds.append(run.update)
        if len(rounds) == call + 1:
            server.kill()
        return collect(run)

    rounds.clear()
    monkeypatch.setattr(Trainer, "collect", killed)
    with pytest.raises(RetrievalError, match=rf"update {failing + 1}: .*ConnectError.*--resume") as caught:
        train(broken)
    assert str(caught.value).count("\n") == 0
    state = read_state(broken.run_dir)
    assert state is not None
    assert state.update == failing

    monkeypatch.setattr(Trainer, "collect", collect)
    with serve("bm25", "--corpus", str(corpus), port=server.port):
        train(broken)
    assert rows(broken.run_dir) == rows(alone.run_dir)
    assert weights(broken.run_dir) == weights(alone.run_dir)


def test_a_run_that_observes_goes_on_and_counts(
    tmp_path: Path, server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is gone in the third update: every search in it fails, and none before."""
    observing = options("ppo", tmp_path / "run", server, on_retrieval_error="observe")
    collect = Trainer.collect

    def killed(run: Trainer) -> Any:
        if run.update == 2:
            server.kill()
        return collect(run)

    monkeypatch.setattr(Trainer, "collect", killed)
    algorithms.load("ppo").train(observing)
    found = rows(observing.run_dir)
    searches = [round(row["rollout/searches"] * observing.rollouts_per_update) for row in found]
    assert [row["env/retrieval_failures"] for row in found] == [0, 0, *searches[2:]]
    assert min(searches) > 0


FAILS_IN_SECOND_PROCESS = """
import os
from search_gym import retrievers
from search_gym.errors import RetrievalError

class Failing:
    def __init__(self, documents):
        self.inner = retrievers.load("bm25", documents)
        self.asked = 0

    def search(self, queries, k):
        self.asked += len(queries)  # of which an update has about 15, in any number of searches
        if os.environ.get("RANK") == "1" and os.environ["FAILS"] == "yes" and self.asked > 24:
            raise RetrievalError("the second disk is gone")
        return self.inner.search(queries, k)
"""


@pytest.mark.slow
def test_of_two_processes_both_stop_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILS_IN_SECOND_PROCESS)
    launch = [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "agents.ppo"),
        *("--updates", "4", "--rollouts-per-update", "16", "--minibatch-size", "8", "--device", "cpu"),
        *("--env.reward", "format", "--env.retriever", "failing:Failing", "--save-every", "100", "--resume"),
    ]

    def run(folder: str, fails: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(tmp_path), str(ROOT)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "FAILS": fails}
        command = [sys.executable, *launch, "--run-dir", str(tmp_path / folder)]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    assert run("alone", "no").returncode == 0
    broken = run("broken", "yes")
    assert broken.returncode != 0
    assert "the second disk is gone; the state before update" in broken.stderr
    state = read_state(tmp_path / "broken")
    assert state is not None
    assert 0 < state.update < 4
    assert run("broken", "no").returncode == 0
    assert rows(tmp_path / "broken") == rows(tmp_path / "alone")
