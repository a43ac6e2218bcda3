"""Corpora on disk: what goes in comes out, from mapped memory, and a folder that is not whole is named."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_gym import corpus as corpora
from search_gym.corpus import Corpus, format_contents, load_corpus, parse_contents, read_passages, write_corpus
from search_gym.errors import CorpusError, IndexFileError
from search_gym.retrievers import Document
from search_gym.retrievers._index import begin, finish, is_complete, open_index
from search_gym.retrievers._ranking import check_documents, pick

DOCUMENTS = [Document(f"d{i}", f"Title {i}", f"text {i} é運") for i in range(10)]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CORPORA = st.lists(st.builds(Document, TEXTS, TEXTS, TEXTS), min_size=1, max_size=12)


@settings(max_examples=50)
@given(CORPORA, st.integers(1, 5), st.data())
def test_it_is_a_sequence_like_the_list(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], rows: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "_ROWS_A_BATCH", rows)
        corpus = write_corpus(documents, tmp_path_factory.mktemp("corpus"))
        assert list(corpus) == documents
        assert len(corpus) == len(documents)
        index = data.draw(st.integers(-len(documents), len(documents) - 1))
        assert corpus[index] == documents[index]
        cut = data.draw(st.slices(len(documents)))
        assert corpus[cut] == documents[cut]
        start, stop = data.draw(st.tuples(st.integers(0, 14), st.integers(0, 14)))
        assert list(corpus.iterate(start, stop)) == documents[start:stop]
        chosen = data.draw(st.lists(st.integers(0, len(documents) - 1)))
        assert corpus.take(chosen) == [documents[i] for i in chosen]
        scores = [float(i) for i in range(len(chosen))]
        assert pick(corpus, chosen, scores) == pick(documents, chosen, scores)


@pytest.mark.parametrize("index", [10, -11])
def test_an_index_outside_raises(index: int, tmp_path: Path) -> None:
    with pytest.raises(IndexError, match="10"):
        write_corpus(DOCUMENTS, tmp_path)[index]


def test_scores_have_to_be_as_many_as_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument"):
        write_corpus(DOCUMENTS, tmp_path).take([1, 2], [0.5])


def test_datasets_reads_the_file(tmp_path: Path) -> None:
    write_corpus(DOCUMENTS, tmp_path)
    table = datasets.Dataset.from_file(str(tmp_path / "corpus.arrow"))
    assert table[3] == {"id": "d3", "title": "Title 3", "text": "text 3 é運"}


def test_documents_are_written_as_they_come(tmp_path: Path) -> None:
    """A second corpus is read while it is asked for, so that neither is ever in memory."""
    asked: list[int] = []

    def watched() -> Iterator[Document]:
        for i in range(3000):
            asked.append(i)
            yield Document(str(i), "", "x")
            # Arrow has the batches before this one.
            assert i < 1999 or (tmp_path / "corpus.arrow").stat().st_size > 0

    assert len(write_corpus(watched(), tmp_path)) == len(asked) == 3000


def test_a_fingerprint_tells_corpora_apart(tmp_path: Path) -> None:
    one, again = (write_corpus(DOCUMENTS, tmp_path / name).fingerprint for name in ("one", "again"))
    other = write_corpus([*DOCUMENTS[:-1], Document("d9", "Title 9", "")], tmp_path / "other").fingerprint
    moved = write_corpus([Document("a", "b c", "d"), Document("e", "f", "g")], tmp_path / "m").fingerprint
    same_characters = write_corpus([Document("a", "b", "c d"), Document("e", "f", "g")], tmp_path / "s").fingerprint
    assert one == again
    assert len({one, other, moved, same_characters}) == 4


# Folders that are not whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.json", None, "corpus.json"),
        ("corpus.json", b"{", "corpus.json"),
        ("corpus.json", b"[]", "corpus.json"),
        ("corpus.json", b'{"version": 2, "num_documents": 10, "fingerprint": ""}', "version 1, got 2"),
        ("corpus.json", b'{"version": 1, "num_documents": 11, "fingerprint": ""}', "11 documents.* got 10"),
        ("corpus.arrow", None, "corpus.arrow"),
        ("corpus.arrow", b"", "corpus.arrow"),
        ("corpus.arrow", b"no Arrow file at all", "corpus.arrow"),
    ],
)
def test_a_damaged_folder_is_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    write_corpus(DOCUMENTS, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus(tmp_path)


def test_a_file_that_was_cut_is_named(tmp_path: Path) -> None:
    write_corpus(DOCUMENTS * 500, tmp_path)
    file = tmp_path / "corpus.arrow"
    for part in (0.1, 0.5, 0.9):
        file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
        with pytest.raises(CorpusError, match="make the corpus anew"):
            Corpus(tmp_path)


def test_an_unfinished_corpus_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS
        raise RuntimeError("the disk is gone")

    write_corpus(DOCUMENTS, tmp_path)
    with pytest.raises(RuntimeError, match="gone"):
        write_corpus(broken(), tmp_path)
    with pytest.raises(CorpusError, match=r"corpus\.json"):
        Corpus(tmp_path)


@pytest.mark.parametrize("documents", [[], [Document("a", "b", "\ud800")]])
def test_what_cannot_be_written_is_refused(documents: list[Document], tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="expected"):
        write_corpus(documents, tmp_path)
    with pytest.raises(CorpusError):
        Corpus(tmp_path)


# JSON lines


def lines(documents: Sequence[Document]) -> bytes:
    rows = [{"id": d.doc_id, "contents": format_contents(d)} for d in documents]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz"])
def test_a_file_is_read_one_passage_at_a_time(name: str, tmp_path: Path) -> None:
    content = lines(DOCUMENTS) + b"{broken\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    passages = read_passages(tmp_path / name)
    assert [next(passages) for _ in DOCUMENTS] == DOCUMENTS
    with pytest.raises(CorpusError, match="line 11"):
        next(passages)


@given(TEXTS, TEXTS)
def test_contents_are_read_as_they_were_written(title: str, text: str) -> None:
    title = " ".join(title.split()).replace('"', "")
    document = Document("d", title, text, 0.5)
    assert parse_contents("d", format_contents(document), 0.5) == document


def test_an_id_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(lines([*DOCUMENTS, DOCUMENTS[3]]))
    with pytest.raises(CorpusError, match=r"line 11, field 'id'.*line 4 has this one"):
        load_corpus(tmp_path / "c.jsonl")
    with pytest.raises(CorpusError, match="line 11"):
        write_corpus(read_passages(tmp_path / "c.jsonl"), tmp_path / "corpus")
    with pytest.raises(CorpusError, match=r"corpus\.json"):
        Corpus(tmp_path / "corpus")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 cut short", b"no gzip"])
def test_a_damaged_gz_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl.gz").write_bytes(content)
    with pytest.raises(CorpusError, match=r"c\.jsonl\.gz"):
        list(read_passages(tmp_path / "c.jsonl.gz"))


# Memory

MAPPED = """
import sys
from pathlib import Path
from search_gym.corpus import Corpus

def own():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

corpus = Corpus(sys.argv[1])
corpus[0]
before = own()
length = sum(len(document.text) for document in corpus)
print(length, own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_of_a_corpus_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    documents = (Document(str(i), "", f"{i:08}" * 500) for i in range(20_000))
    size = write_corpus(documents, tmp_path).path.joinpath("corpus.arrow").stat().st_size / 2**20
    done = subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True, check=True)
    length, grown = done.stdout.split()
    assert int(length) == 20_000 * 4_000
    assert size > 75
    # A thousand documents of 4 kB at a time, and room for the allocator.
    assert float(grown) < 25


# What an index says of itself


def some_index(path: Path) -> Path:
    begin(path)
    finish(path, "bm25", write_corpus(DOCUMENTS, path / "corpus"), {"k1": 1.5})
    return path


def test_an_index_is_complete_between_finish_and_begin(tmp_path: Path) -> None:
    path = some_index(tmp_path / "index")
    assert is_complete(path)
    saved = open_index(str(path), "bm25")
    assert (saved.path, saved.kind, saved.options) == (path, "bm25", {"k1": 1.5})
    assert list(saved.corpus) == DOCUMENTS
    begin(path)
    assert not is_complete(path)


def test_an_index_may_move_with_its_corpus(tmp_path: Path) -> None:
    moved = some_index(tmp_path / "index").rename(tmp_path / "elsewhere")
    assert list(open_index(moved).corpus) == DOCUMENTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "complete index"),
        ("", "readable index.json"),
        ("[]", "readable index.json"),
        ({"options": 3}, "readable index.json"),
        ({"corpus": 3}, "readable index.json"),
        ({"version": 7}, "version 1, got 7"),
        ({"kind": "dense"}, "for 'bm25', got one for 'dense'"),
        ({"corpus": "gone"}, "its corpus in"),
        ({"fingerprint": "other"}, "got another one"),
    ],
)
def test_an_index_that_cannot_be_used_is_named(change: object, message: str, tmp_path: Path) -> None:
    file = some_index(tmp_path) / "index.json"
    if change is None:
        file.unlink()
    elif isinstance(change, dict):
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    else:
        file.write_text(str(change))
    with pytest.raises(IndexFileError, match=message):
        open_index(tmp_path, "bm25")


def test_documents_are_kept_as_they_are_if_they_cannot_change(tmp_path: Path) -> None:
    corpus, some = write_corpus(DOCUMENTS, tmp_path), tuple(DOCUMENTS)
    assert check_documents(corpus) is corpus
    assert check_documents(some) is some
    assert check_documents(DOCUMENTS) == some
