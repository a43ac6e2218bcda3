"""``search-gym data``: what it prints, what it refuses, and with which exit code."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from search_gym import retrievers
from search_gym.cli import data as data_command
from search_gym.cli import main, make_parser
from search_gym.corpus import load_corpus
from search_gym.questions import load
from search_gym.recall import answer_recall
from search_gym.retrievers import Document
from tests.test_jsonl import write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def row(i: int, split: str, **changes: Any) -> dict[str, Any]:
    metadata = {"split": split, "type": "bridge", "supporting_ids": [f"d{i}"]}
    plain = {"id": f"{split}_{i}", "question": f"Where was person{i} born?", "golden_answers": [f"Town {i}"]}
    return {**plain, "metadata": metadata, **changes}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """NQ in two files, HotpotQA in one for all splits, and passages."""
    folder = tmp_path / "data"
    (folder / "nq").mkdir(parents=True)
    write(folder / "nq" / "train.jsonl", *(row(i, "train") for i in range(4)))
    write(folder / "nq" / "test.jsonl", *(row(i, "test") for i in range(4, 10)))
    write(folder / "hotpotqa.jsonl", *(row(i, "dev") for i in range(3)), row(3, "dev", golden_answers=["Yes"]))
    passages = [{"id": f"d{i}", "contents": f'"person{i}"\nperson{i} was born in Town {i}.'} for i in range(10)]
    write(folder / "corpus.jsonl", *passages)
    return folder


def run(*args: object) -> int:
    return main(["data", *map(str, args)])


def test_info_lists_every_set_and_what_is_here(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info") == 0
    printed = capsys.readouterr().out
    for line in ("nq: Natural Questions", "CC BY-SA 3.0", "train  169,615", "tinywiki: ", "arXiv 2108.00573"):
        assert line in printed
    assert "  dev      2,417  not here  (as test)" in printed.splitlines()
    assert "hf download RUC-NLPIR/FlashRAG_datasets nq/train.jsonl" in printed
    assert run("info", data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  train   79,168  in {data / 'nq' / 'train.jsonl'}" in lines
    assert f"  dev      7,405  in {data / 'hotpotqa.jsonl'} with other splits  (as test)" in lines
    assert "  dev      8,757  not here" in lines


def test_info_needs_no_library_of_the_hub(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run("info") == 0
    assert "  dev      2,417  not here  (as test)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("streaming", [False, True])
def test_show_prints_the_first_questions(data: Path, capsys: pytest.CaptureFixture[str], streaming: bool) -> None:
    assert run("show", f"nq:{data}", "-n", 2, "--option", f"streaming={str(streaming).lower()}") == 0
    printed = capsys.readouterr().out
    assert "test_4  Where was person4 born?\n  answers          Town 4\n" in printed
    assert "test_5" in printed
    assert "test_6" not in printed
    assert ("2 of 6 questions" in printed) != streaming


def test_show_json_can_be_read_back(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", f"nq:{data}", "--split", "train", "--json", "-n", 10) == 0
    copy = tmp_path / "copy.jsonl"
    copy.write_text(capsys.readouterr().out, encoding="utf-8")
    assert list(load(f"jsonl:{copy}", "train")) == list(load(f"nq:{data}", "train"))


def test_validate_says_what_there_is(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", f"nq:{data}", f"hotpotqa:{data}", "tinywiki", "--corpus", data / "corpus.jsonl") == 0
    printed = capsys.readouterr()
    assert f"nq:{data}: train 4, test 6\n" in printed.out
    assert "note   train: 4 questions where the whole split has 79,168" in printed.out
    assert f"note   dev: {data}: expected nq/dev.jsonl" in printed.out
    assert f"hotpotqa:{data}: dev 4\n" in printed.out
    assert "tinywiki: train" in printed.out
    assert "  error" not in printed.out
    assert not printed.err


def test_validate_knows_the_whole_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "bamboogle.jsonl", *(row(i, "test") for i in range(125)))
    assert run("validate", f"bamboogle:{tmp_path}") == 0
    assert capsys.readouterr().out == f"bamboogle:{tmp_path}: test 125\n"


def test_validate_finds_what_is_wrong(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        data / "nq" / "test.jsonl",
        row(4, "test", question="where was  Person1 born"),
        row(5, "test", golden_answers=["The", "..."]),
        row(6, "test", metadata={"supporting_ids": ["d6", "gone"]}),
        row(7, "test", id="7"),
        row(7, "test", id="8"),
        row(9, "test", golden_answers=["The", "Town 9"]),
    )
    assert run("validate", f"nq:{data}", f"hotpotqa:{data}", "--corpus", data / "corpus.jsonl") == 2
    printed = capsys.readouterr()
    for line in (
        "note   test: 1 question that an earlier one of the split train asks in the same words: test_4",
        "note   test: 1 question that an earlier one of this split asks in the same words: 8",
        "note   test: 1 question whose answers are articles and punctuation alone, which exact match cannot tell from "
        "each other: test_5",
        "error  test: 1 question with gold passages that are not in the corpus: test_6",
    ):
        assert f"  {line}\n" in printed.out
    assert printed.err == "error: expected sound question sets, got 1 of the errors above; do: correct them\n"
    assert run("validate", f"nq:{data}") == 0, "without a corpus nothing is known of passages"


def test_validate_checks_every_row(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "nq" / "test.jsonl", *(row(i, "test") for i in range(2000)), row(1, "test", id="x", question=3))
    assert run("validate", f"nq:{data}") == 2
    printed = capsys.readouterr()
    assert "test.jsonl, line 2001, field 'question': expected a string, got 3" in printed.out
    assert f"nq:{data}: train 4\n" in printed.out


def test_validate_refuses_a_split_that_is_absent(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", f"nq:{data}", "--split", "dev") == 2
    assert "error  dev: " in capsys.readouterr().out
    assert run("validate", f"musique:{data}") == 2
    assert f"musique:{data}: no questions\n  error  train: {data}: expected musique" in capsys.readouterr().out


def test_validate_reads_other_files(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = data / "nq" / "test.jsonl"
    assert run("validate", f"jsonl:{file}", "--option", f"corpus={data / 'corpus.jsonl'}") == 0
    assert capsys.readouterr().out == f"jsonl:{file}: all 6\n"
    write(data / "corpus.jsonl", {"id": "d0", "contents": '"t"\nx'})
    assert run("validate", f"jsonl:{file}", "--option", f"corpus={data / 'corpus.jsonl'}") == 2
    assert "error  all: 6 questions with gold passages that are not in the corpus: test_4, test_5, test_6, ..." in (
        capsys.readouterr().out
    )


def test_ceiling_is_the_recall_of_the_library(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask = ["ceiling", f"hotpotqa:{data}", "--corpus", data / "corpus.jsonl", "-k", 1, 2]
    specs = ["bm25", "noisy(bm25, probability=0.9)"]
    assert run(*ask, "--retriever", specs[0], "--retriever", specs[1], "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_questions"], printed["num_without_span"], printed["num_without_passages"]) == (4, 1, 0)
    documents = load_corpus(data / "corpus.jsonl")
    for spec in specs:
        expected = answer_recall(load(f"hotpotqa:{data}", "test"), retrievers.load(spec, documents), (1, 2))
        assert printed["retrievers"][spec] == [
            {"k": at.k, **{name: getattr(at, name)._asdict() for name in ("answer", "passages", "all_passages")}}
            for at in expected.at
        ]
    assert printed["retrievers"]["bm25"][0]["passages"]["mean"] == 1.0
    assert run(*ask, "--limit", 3, "--batch-size", 2) == 0
    table = capsys.readouterr().out
    assert "split test: 3 questions" in table
    assert "bm25                             2   1.000 [0.439, 1.000]  1.000 [0.439, 1.000]" in table
    assert "yes or no" not in table
    assert run(*ask) == 0
    assert "not counted in the answers: 1 (25.0%) that are answered by yes or no" in capsys.readouterr().out


def test_ceiling_opens_an_index(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "index"
    assert main(["index", "build", "bm25", "--corpus", str(data / "corpus.jsonl"), "--output", str(index)]) == 0
    capsys.readouterr()
    assert run("ceiling", f"jsonl:{data / 'nq' / 'test.jsonl'}", "--retriever", index, "-k", 1) == 0
    assert "split all: 6 questions" in capsys.readouterr().out


class Failing:
    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        raise ConnectionResetError("gone")


def make_failing(documents: Sequence[Document]) -> Failing:
    return Failing()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["ceiling", "nq:{data}", "--retriever", f"{__name__}:make_failing"],
            "Failing raised ConnectionResetError: gone",
        ),
        (["ceiling", "nq:{data}"], "expected documents to search in"),
        (["ceiling", "nq:{data}", "--corpus", "{data}/corpus.jsonl", "-k", "0"], "expected ks and batch_size >= 1"),
        (["ceiling", "nq:{data}", "--corpus", "{data}/absent.jsonl"], "absent.jsonl"),
        (["ceiling", "nq", "--corpus", "{data}/corpus.jsonl"], "`hf download"),
        (["ceiling", "nq:{data}", "--corpus", "{data}/corpus.jsonl", "--limit", "0"], "--limit of at least 1"),
        (["show", "nqq:{data}"], "did you mean 'nq'"),
        (["show", "nqq"], "did you mean 'nq'"),
        (["show", "nq:{data}", "-n", "0"], "-n of at least 1"),
        (["show", "nq:{data}", "--option", "limt=3"], "limt"),
        (["show", "nq", "--option", "streaming=true"], "HF_HUB_OFFLINE is set"),
        (["show", "nq:{data}", "--split", "validation"], r"'validation'"),
    ],
)
def test_an_error_is_one_line(data: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert run(*(arg.format(data=data) for arg in args)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("command", [[], ["info"], ["show"], ["validate"], ["ceiling"]])
def test_help_explains(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*command, "--help")
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


PAGE = Path(__file__).parents[1] / "docs" / "data.md"
EXAMPLES = re.findall(
    r"^ *(search-gym data .*)$", f"{PAGE.read_text(encoding='utf-8')}{data_command.__doc__}", re.MULTILINE
)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_and_of_the_help_parse(example: str) -> None:
    parsed = make_parser().parse_args(shlex.split(example, comments=True)[1:])
    assert parsed.run.__module__ == data_command.__name__


def test_there_are_examples_of_every_command() -> None:
    assert {example.split()[2] for example in EXAMPLES} == {"info", "show", "validate", "ceiling"}
