"""The benchmark sets: every layout gives the same questions, read as they are asked for, from a folder or the hub."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium as gym
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import question_tables
from search_gym import plugins, questions
from search_gym.errors import CorpusError, OptionError, QuestionError
from search_gym.questions import LazyQuestions, Question, QuestionSet
from search_gym.questions._flashrag import HUB, FlashRAGSet, Mixture
from tests.test_jsonl import MALFORMED_ROWS, PASSAGE, ROW, write

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
NAMES = ("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "search_gym"


def known(name: str) -> FlashRAGSet | Mixture:
    return plugins.find(questions, name, "SET")  # type: ignore[return-value]


def rows(split: str, number: int = 5) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{split}_{i}",
            "question": f"Where is it, of {split}, for the {i}th time? 運河",
            "golden_answers": ["Kanor", "Town of Kanor"][: 1 + i % 2],
            "metadata": {"split": split, "type": "bridge", "supporting_ids": [f"d{i}"]} | ({"level": i} if i else {}),
        }
        for i in range(number)
    ]


def write_parquet(path: Path, items: Sequence[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(list(items)), path, row_group_size=2)


def write_layout(folder: Path, layout: str, name: str = "nq", splits: Sequence[str] = ("train", "dev", "test")) -> Path:
    """Files of one set in one of the layouts that are read."""
    (folder / name).mkdir(parents=True)
    if layout.startswith("flat"):
        files = {folder / name: [row for group in zip(*map(rows, splits), strict=True) for row in group]}
    else:
        files = {folder / name / split: rows(split) for split in splits}
    for stem, items in files.items():
        if layout.endswith("parquet"):
            write_parquet(stem.with_name(f"{stem.name}.parquet"), items)
        else:
            path = write(stem.with_name(f"{stem.name}.jsonl"), *items)
            if layout.endswith("gz"):
                stem.with_name(f"{stem.name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("layout", ["jsonl", "jsonl.gz", "parquet", "flat jsonl", "flat jsonl.gz", "flat parquet"])
def test_every_layout_gives_the_questions_of_the_jsonl_loader(tmp_path: Path, layout: str, streaming: bool) -> None:
    folder = write_layout(tmp_path / "data", layout)
    for split in ("train", "dev", "test"):
        path = write(tmp_path / f"{split}.jsonl", *rows(split))
        expected = list(questions.load("jsonl", split, path=path))
        assert len(expected) == 5
        found = questions.load("nq", split, data_dir=folder, streaming=streaming)
        assert list(found) == expected
        assert list(questions.load(f"nq:{folder}", split, limit=2, streaming=streaming)) == expected[:2]
        assert list(pickle.loads(pickle.dumps(found))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_set_loads_its_splits_under_its_name(tmp_path: Path, name: str) -> None:
    here = known(name)
    folder = write_layout(tmp_path, "jsonl", name, tuple(here.sizes))
    for split in here.sizes:
        assert [q.question_id for q in questions.load(name, split, data_dir=folder)] == [r["id"] for r in rows(split)]
    assert list(questions.load(name, "test", data_dir=folder)) == list(
        questions.load(name, here.test_split, data_dir=folder)  # type: ignore[union-attr]
    )


def test_sizes_are_those_that_search_r1_trains_and_tests_on() -> None:
    tested = {name: known(name).sizes[known(name).test_split] for name in NAMES}  # type: ignore[union-attr]
    assert tested == {
        "nq": 3_610,
        "triviaqa": 11_313,
        "popqa": 14_267,
        "hotpotqa": 7_405,
        "2wikimultihopqa": 12_576,
        "musique": 2_417,
        "bamboogle": 125,
    }
    assert sum(tested.values()) == 51_713
    assert known("nq_hotpotqa").sizes == {"train": 79_168 + 90_447, "test": 3_610 + 7_405}
    assert {name for name in NAMES if known(name).test_split == "dev"} == {  # type: ignore[union-attr]
        "hotpotqa",
        "2wikimultihopqa",
        "musique",
    }


def test_a_split_that_a_set_does_not_have_is_named(tmp_path: Path) -> None:
    write_layout(tmp_path, "jsonl", "popqa")
    with pytest.raises(OptionError, match=r"popqa among \['test'\], got 'train'"):
        questions.load("popqa", "train", data_dir=tmp_path)
    with pytest.raises(OptionError, match=r"nq_hotpotqa among \['train', 'test'\], got 'dev'"):
        questions.load("nq_hotpotqa", "dev", data_dir=tmp_path)
    with pytest.raises(OptionError, match="limit"):
        questions.load("popqa", "test", data_dir=tmp_path, limit=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_mixture_has_ids_that_are_unique(tmp_path: Path, streaming: bool) -> None:
    write_layout(tmp_path, "jsonl", "nq")
    write_layout(tmp_path, "jsonl", "hotpotqa", ("train", "dev"))
    parts = {name: list(questions.load(name, "train", data_dir=tmp_path)) for name in ("nq", "hotpotqa")}
    assert parts["nq"] == parts["hotpotqa"], "the same ids on purpose"
    found = questions.load("nq_hotpotqa", "train", data_dir=tmp_path, streaming=streaming)
    assert [q.question_id for q in found] == [f"{n}/{q.question_id}" for n, part in parts.items() for q in part]
    assert len({q.question_id for q in found}) == len(found) == 10
    assert [q.metadata["data_source"] for q in found] == ["nq"] * 5 + ["hotpotqa"] * 5
    assert [(q.text, q.answers) for q in found] == [(q.text, q.answers) for part in parts.values() for q in part]
    assert [q.question_id for q in found[4:7]] == ["nq/train_4", "hotpotqa/train_0", "hotpotqa/train_1"]
    assert found[-1] == found[9]
    limited = questions.load("nq_hotpotqa", "train", data_dir=tmp_path, limit=1, streaming=streaming)
    assert [q.question_id for q in limited] == ["nq/train_0", "hotpotqa/train_0"]
    tested = questions.load("nq_hotpotqa", "test", data_dir=tmp_path, streaming=streaming)
    assert [q.question_id for q in tested] == [f"nq/test_{i}" for i in range(5)] + [
        f"hotpotqa/dev_{i}" for i in range(5)
    ]


@given(st.lists(st.integers()), st.one_of(st.integers(-12, 12), st.slices(12)))
def test_lazy_questions_are_indexed_like_a_tuple(numbers: list[int], index: int | slice) -> None:
    made = [Question(str(i), str(n), ("x",)) for i, n in enumerate(numbers)]
    read: list[int] = []

    def make(i: int) -> Question:
        read.append(i)
        return made[i]

    lazy = LazyQuestions(make, range(len(made)))
    whole = QuestionSet(lazy, ())
    assert not read
    if isinstance(index, slice):
        assert list(lazy[index]) == list(whole[index]) == made[index]
    elif -len(made) <= index < len(made):
        assert lazy[index] == made[index]
        assert read == [index % len(made)], "no other is read"
    else:
        with pytest.raises(IndexError):
            lazy[index]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1), st.dictionaries(TEXT, JSON)), min_size=1, max_size=5))
def test_what_is_kept_on_disk_is_what_was_read(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, list[str], dict[str, Any]]]
) -> None:
    """Whatever the metadata of one row has in common with that of another."""
    folder = tmp_path_factory.mktemp("sets")
    lines = [
        {"id": str(i), "question": text, "golden_answers": answers, "metadata": {"inner": metadata}}
        for i, (text, answers, metadata) in enumerate(items)
    ]
    path = write(folder / "nq.jsonl", *lines)
    assert list(questions.load("nq", "test", data_dir=folder)) == list(questions.load("jsonl", "all", path=path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("changes", "message"), MALFORMED_ROWS)
def test_a_malformed_line_is_named(
    tmp_path: Path, cache: Path, changes: dict[str, Any], message: str, streaming: bool
) -> None:
    (tmp_path / "nq").mkdir()
    path = write(tmp_path / "nq" / "dev.jsonl", ROW, {**ROW, "id": "q2", **changes})
    with pytest.raises(QuestionError, match=f"line 2, field {message}") as caught:
        questions.load("nq", "dev", data_dir=tmp_path, streaming=streaming)
    assert str(path) in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir()), "nothing is kept of a malformed file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "'question'.*not blank"),
        ({"golden_answers": []}, "'golden_answers'.*one or more"),
        ({"golden_answers": ["A", None]}, "'golden_answers'.*strings"),
        ({"golden_answers": None}, "'golden_answers'.*no such field"),
        ({"metadata": {"split": "dev", "score": float("nan")}}, "'metadata'.*JSON"),
        ({"metadata": {"split": "dev", "image": b"\xff"}}, "'metadata'.*JSON"),
        ({"id": "q1"}, r"'id'.*row 1 has this one"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path / "nq.parquet", [ROW, {**ROW, "id": "q2", **changes}])
    with pytest.raises(QuestionError, match=rf"nq\.parquet, row 2, field {message}"):
        questions.load("nq", "dev", data_dir=tmp_path)


def test_text_that_is_no_unicode_is_named(tmp_path: Path) -> None:
    write(tmp_path / "nq.jsonl", ROW, {**ROW, "id": "q2", "question": "\ud800?"})
    with pytest.raises(QuestionError, match=r"line 2, field 'question'.*UTF-8"):
        questions.load("nq", "dev", data_dir=tmp_path)


@pytest.mark.parametrize("content", [b"no parquet", b""])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "nq.parquet").write_bytes(content)
    with pytest.raises(QuestionError, match=r"nq\.parquet: expected a readable parquet file"):
        questions.load("nq", "dev", data_dir=tmp_path)
    (tmp_path / "popqa.jsonl").write_bytes(b"")
    with pytest.raises(QuestionError, match=r"popqa\.jsonl: .*empty file"):
        questions.load("popqa", "test", data_dir=tmp_path)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([ROW]).slice(0, 0), tmp_path / "nq.parquet")
    with pytest.raises(QuestionError, match="empty file"):
        questions.load("nq", "dev", data_dir=tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_absent_comes_with_the_command_that_brings_it(tmp_path: Path, streaming: bool) -> None:
    with pytest.raises(QuestionError, match=rf"musique/dev\.jsonl or .*; do: hf download {HUB} musique/dev\.jsonl "):
        questions.load("musique", "test", data_dir=tmp_path, streaming=streaming)
    write(tmp_path / "musique.jsonl", {**ROW, "metadata": {"split": "train"}})
    with pytest.raises(QuestionError, match="questions of the split 'dev', got none"):
        questions.load("musique", "test", data_dir=tmp_path, streaming=streaming)


def test_a_file_that_changes_is_read_anew(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "nq.jsonl", ROW)
    first = questions.load("nq", "dev", data_dir=tmp_path)
    assert list(questions.load("nq", "dev", data_dir=tmp_path)) == list(first)
    assert len(list(cache.iterdir())) == 1, "the second time it was there"
    write(path, {**ROW, "question": "Whose?"})
    os.utime(path, ns=(1, 1))
    assert [q.text for q in questions.load("nq", "dev", data_dir=tmp_path)] == ["Whose?"]
    assert [q.text for q in first] == ["Where?"]
    assert len(list(cache.iterdir())) == 2


def test_streaming_keeps_nothing_on_disk_and_reads_no_more_than_it_needs(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "nq").mkdir()
    write(tmp_path / "nq" / "dev.jsonl", ROW, b"not JSON")
    assert len(questions.load("nq", "dev", data_dir=tmp_path, streaming=True, limit=1)) == 1
    assert not cache.exists()
    with pytest.raises(QuestionError, match="line 2"):
        questions.load("nq", "dev", data_dir=tmp_path, streaming=True)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "nq.jsonl", ROW)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "nq.jsonl")
    with pytest.raises(QuestionError, match=r"expected a folder to keep the questions in.*streaming=True"):
        questions.load("nq", "dev", data_dir=tmp_path)


def test_questions_bring_their_corpus_into_the_environment(tmp_path: Path) -> None:
    write_layout(tmp_path, "jsonl", "hotpotqa", ("train", "dev"))
    corpus = write(tmp_path / "corpus.jsonl", PASSAGE, {"id": "d2", "contents": '"It"\nIt is in Kanor.'})
    found = questions.load("hotpotqa", "test", data_dir=tmp_path, corpus=corpus)
    assert isinstance(found, QuestionSet)
    assert [document.doc_id for document in found.documents] == ["d1", "d2"]
    with pytest.raises(CorpusError):
        questions.load("hotpotqa", "test", data_dir=tmp_path, corpus=tmp_path / "absent")
    env = gym.make("search_gym/SearchQA-v0", questions=f"hotpotqa:{tmp_path}", split="train", corpus=corpus)
    codec = env.unwrapped.task.codec  # type: ignore[attr-defined]
    prompt, _ = env.reset(options={"question_index": 3})
    assert "of train, for the 3th time" in codec.decode(prompt)
    documents, *_ = env.step(codec.encode("<search>Where is it?</search>"))
    assert "It is in Kanor." in codec.decode(documents)
    _, reward, terminated, _, _ = env.step(codec.encode("<answer>Kanor</answer>"))
    assert terminated
    assert reward == 1.0


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for files, and counts the bytes that went out."""

    files: dict[str, bytes]
    sent = 0

    def do_HEAD(self) -> None:
        self._head()

    def do_GET(self) -> None:
        content = self._head()
        for start in range(0, len(content), 4096):
            try:
                self.wfile.write(content[start : start + 4096])
            except OSError:  # the client has what it needs
                self.close_connection = True
                return
            type(self).sent += 4096

    def _head(self) -> bytes:
        content = self.files.get(self.path.removeprefix(f"/datasets/{HUB}/resolve/main/"))
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        return content or b""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[type[_Hub]]:
    class Hub(_Hub):
        files: dict[str, bytes] = {}  # noqa: RUF012
        address = ""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Hub.address = f"http://127.0.0.1:{server.server_port}"
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def in_process(home: Path, address: str, code: str, **more: str) -> str:
    """What ``code`` prints in a process of its own, for which ``address`` is the hub: it reads that when it starts."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**plain, "HF_ENDPOINT": address, "HF_HOME": str(home), **more}
    program = f"from search_gym import questions\nfrom search_gym.errors import QuestionError\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


REFUSED = "try: {}\nexcept QuestionError as error: print(error)"


def test_a_set_comes_from_the_hub_once_and_then_from_the_cache(tmp_path: Path, hub: Any) -> None:
    hub.files["nq/test.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows("test")).encode()
    ask = "found = questions.load('nq', 'test'); print(len(found), found[-1].question_id)"
    assert in_process(tmp_path / "home", hub.address, ask) == "5 test_4"
    hub.files.clear()
    assert in_process(tmp_path / "home", hub.address, ask) == "5 test_4"
    assert in_process(tmp_path / "home", "http://127.0.0.1:9", ask, HF_HUB_OFFLINE="1") == "5 test_4"
    shutil.rmtree(tmp_path / "home" / "datasets")
    assert in_process(tmp_path / "home", "http://127.0.0.1:9", ask, HF_HUB_OFFLINE="1") == "5 test_4"


def test_streaming_from_the_hub_takes_what_it_needs(tmp_path: Path, hub: Any) -> None:
    content = "".join(json.dumps({**ROW, "id": str(i), "question": "Where?" * 100}) + "\n" for i in range(50_000))
    hub.files["nq/train.jsonl"] = content.encode()
    ask = "print([q.question_id for q in questions.load('nq', 'train', streaming=True, limit=3)])"
    assert in_process(tmp_path / "home", hub.address, ask) == "['0', '1', '2']"
    assert 0 < hub.sent < len(content) / 2
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_without_the_hub_an_error_says_what_to_do(tmp_path: Path, hub: Any, streaming: bool) -> None:
    ask = REFUSED.format(f"questions.load('hotpotqa', 'test', streaming={streaming})")
    offline = in_process(tmp_path / "home", hub.address, ask, HF_HUB_OFFLINE="1")
    assert f"`hf download {HUB} hotpotqa/dev.jsonl --repo-type dataset --local-dir DATA`" in offline
    assert "'hotpotqa:DATA'" in offline
    assert len(offline.splitlines()) == 1
    absent = in_process(tmp_path / "home", hub.address, ask)
    assert "404" in absent
    assert len(absent.splitlines()) == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files of ../shared/data are absent")
@pytest.mark.parametrize(("name", "splits"), [("hotpotqa", 2), ("2wikimultihopqa", 2), ("nq", 1)])
def test_real_files(name: str, splits: int) -> None:
    whole = {q.question_id: q for q in questions.load("jsonl", "all", path=DATA / f"{name}.jsonl")}
    found: dict[str, Question] = {}
    for split in known(name).sizes:
        try:
            found |= {q.question_id: q for q in questions.load(f"{name}:{DATA}", split)}
        except QuestionError:
            continue
        splits -= 1
    assert splits == 0
    assert found == whole


class TestThePage:
    """docs/data.md says what the code says."""

    PAGE = question_tables.PAGE.read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", NAMES)
    def test_its_table_of_sets(self, name: str) -> None:
        here = known(name)
        assert isinstance(here, FlashRAGSet)
        (line,) = [line for line in self.PAGE.splitlines() if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        expected = []
        for split in ("train", "dev", "test"):
            size = f"{here.sizes[split]:,}" if split in here.sizes else ""
            expected.append(f"**{size}**" if split == here.test_split else size)
        assert cells[:3] == expected
        assert cells[4] == here.licence
        assert here.citation.partition("arXiv ")[2] in cells[5]
        assert here.citation[:10] in cells[5]

    def test_its_table_of_costs(self) -> None:
        results = json.loads(question_tables.RESULTS.read_text(encoding="utf-8"))
        assert question_tables.with_table(self.PAGE, results) == self.PAGE
        assert {row["questions"] for row in results["ways"].values()} == {169_615}
        assert results["ways"]["table"]["private_megabytes"] < results["ways"]["memory"]["private_megabytes"] / 10
