"""`search-gym index` as a user runs it: in processes, also ones that are killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search_gym import cli, retrievers
from search_gym.corpus import format_contents, write_corpus
from search_gym.retrievers import Document
from tests import conformance


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "passages.jsonl", conformance.DOCUMENTS)


def write_passages(path: Path, documents: tuple[Document, ...]) -> Path:
    rows = ({"id": d.doc_id, "contents": format_contents(d)} for d in documents)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "search_gym", "index", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False)


def test_build_describe_and_search_in_processes(passages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wiki" / "bm25"
    built = run("build", "bm25", "--corpus", passages, "--output", folder, "--option", "k1=0.9")
    assert built.returncode == 0, built.stderr
    described = run("info", folder).stdout.decode()
    assert built.stdout.decode().endswith(described)
    for part in (f"bm25(index={folder})", f"7 in {folder / 'corpus'}", '"k1": 0.9, "b": 0.75', "bytes a document"):
        assert part in described
    expected = retrievers.load("bm25", conformance.DOCUMENTS, k1=0.9).search(["Juden Plard born", "zzzz"], 2)
    searched = run("search", folder, "--k", "2", "--json", stdin=b"Juden Plard born\nzzzz\n")
    rows = [json.loads(line) for line in searched.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["Juden Plard born", "zzzz"]
    assert [[Document(*d.values()) for d in self["documents"]] for self in map(renamed, rows)] == expected


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "search_gym", "data", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def renamed(row: dict) -> dict:
    fields = ("id", "title", "text", "score")
    return {**row, "documents": [{name: document[name] for name in fields} for document in row["documents"]]}


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["index", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_text_output_and_a_described_retriever(
    passages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(conformance.DOCUMENTS, tmp_path / "corpus")
    for corpus in (passages, tmp_path / "corpus"):
        status, out, _ = call(capsys, "search", "bm25", "mayor of Fimath", "--corpus", corpus, "--k", "1")
        assert status == 0
        assert "1. [" in out
        assert "Fimath (d1)" in out
        assert "The mayor of Fimath is Juden Plard" in out


def test_a_corpus_folder_is_shared_and_not_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(conformance.DOCUMENTS, tmp_path / "corpus")
    assert call(capsys, "build", "bm25", "--corpus", tmp_path / "corpus", "--output", tmp_path / "index")[0] == 0
    assert not list((tmp_path / "index").rglob("corpus.*"))
    assert "Kanor" in call(capsys, "search", tmp_path / "index", "Kanor")[1]


def test_every_error_is_one_line(passages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "index"
    (tmp_path / "bad.jsonl").write_text('{"id": "d1"}\n')
    (tmp_path / "file").write_text("")
    build = ("build", "bm25", "--output", output, "--corpus")
    for arguments, message in (
        ((*build, tmp_path / "absent.jsonl"), "check --corpus"),
        ((*build, tmp_path / "bad.jsonl"), "line 1, field 'contents'"),
        ((*build, tmp_path), "corpus.json"),
        ((*build, passages, "--option", "k2=1"), "'k1', 'b'"),
        ((*build, passages, "--option", "k1"), "NAME=VALUE"),
        ((*build, passages, "--option", "k1=1", "--option", "k1=2"), "each name once"),
        ((*build, passages, "--option", "k1=many"), "k1='many'"),
        (("build", "bm52", "--output", output, "--corpus", passages), "did you mean 'bm25'"),
        (("build", "oracle", "--output", output, "--corpus", passages), "an index of its own"),
        (("build", "bm25", "--output", tmp_path / "file", "--corpus", passages), "file"),
        (("info", tmp_path / "absent"), "complete index"),
        (("search", tmp_path, "query"), "complete index"),
        (("search", "bm52", "query", "--corpus", passages), "did you mean 'bm25'"),
        (("search", "bm25", "query"), "expected documents"),
        (("search", "bm25(", "query"), "retriever's description"),
        (("search", "bm25", "query", "--corpus", passages, "--k", "0"), "k >= 1"),
    ):
        status, _, err = call(capsys, *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert err.startswith("error: ")
        assert message in err
    assert not (output / "index.json").exists()
    assert call(capsys, *build, passages)[0] == 0
    assert "expected a folder without an index" in call(capsys, *build, passages)[2]


def test_queries_that_are_not_utf8_are_refused(passages: Path) -> None:
    done = run("search", "bm25", "--corpus", passages, stdin=b"caf\xe9\n")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: expected queries in UTF-8")
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("command", [(), ("build",), ("info",), ("search",)])
def test_help_teaches(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["index", *command, "--help"])
    out = capsys.readouterr().out
    assert "usage: search-gym index" in out
    if command in ((), ("build",)):
        assert "bm25" in out


def test_another_corpus_is_not_taken_for_that_of_the_build_that_was_stopped(
    passages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ("build", "bm25", "--output", tmp_path / "index", "--corpus", passages)
    assert call(capsys, *build)[0] == 0
    (tmp_path / "index/index.json").unlink()
    write_passages(passages, (*conformance.DOCUMENTS, Document("new", "New", "A zzzz.")))
    assert call(capsys, *build)[0] == 0
    assert "(new)" in call(capsys, "search", tmp_path / "index", "zzzz")[1]


def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    """Killed for good while it counts words: not complete; given again, the command ends with the right index."""
    documents = tuple(Document(f"d{i}", f"t{i % 97}", f"w{i % 1009} w{i % 31} filler") for i in range(40_000))
    passages, output = write_passages(tmp_path / "passages.jsonl", documents), tmp_path / "index"
    arguments = ("build", "bm25", "--corpus", str(passages), "--output", str(output))
    process = subprocess.Popen([sys.executable, "-m", "search_gym", "index", *arguments])
    deadline = time.monotonic() + 120
    while not (output / "corpus/source.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert run("info", output).returncode == 2
    written = (output / "corpus" / "corpus.arrow").stat().st_mtime_ns
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert (output / "corpus" / "corpus.arrow").stat().st_mtime_ns == written
    queries = ["w5 t3", "w1008 w7", "t96", "filler w30"]
    expected = retrievers.load("bm25", documents[::], backend="numpy").search(queries, 5)
    assert retrievers.load("bm25", index=str(output), backend="numpy").search(queries, 5) == expected
