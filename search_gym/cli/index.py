"""Build, describe and search indexes.

    search-gym index build bm25 --corpus wiki-18.jsonl.gz --output wiki/bm25
    search-gym index build dense --corpus wiki/bm25/corpus --output wiki/e5 --option encoder=e5-base-v2
    search-gym index info wiki/bm25
    search-gym index search wiki/bm25 "Who wrote Walden?" --k 5
    search-gym index search "hybrid(bm25(index=wiki/bm25), dense(index=wiki/e5))" "Who wrote Walden?"

A build that was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from search_gym import plugins, retrievers
from search_gym._progress import progress
from search_gym.corpus import Corpus, load_corpus, read_passages, write_corpus
from search_gym.errors import CorpusError, OptionError, UnknownNameError
from search_gym.retrievers import Retriever, Spec
from search_gym.retrievers._index import is_complete, open_index

HELP = "build, describe and search indexes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands build, info and search."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="make an index of a corpus")
    build.add_argument("kind", help=f"retriever that the index is for: {', '.join(buildable())}")
    build.add_argument(
        "--corpus",
        type=Path,
        required=True,
        help='passages: JSON lines {"id", "contents": "\\"Title\\"\\ntext"}, .gz too, or the corpus folder of another '
        "index, which is then shared and not copied",
    )
    build.add_argument("--output", type=Path, required=True, help="folder to write the index into")
    build.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the retriever's build function, such as k1=0.9 or faiss=IVF1024,PQ64; may be repeated",
    )
    build.set_defaults(run=run_build)

    info = commands.add_parser("info", help="say what an index holds")
    info.add_argument("index", type=Path)
    info.set_defaults(run=run_info)

    search = commands.add_parser("search", help="ask an index, or any retriever")
    search.add_argument("retriever", help="folder of an index, or a description such as 'bm25(index=FOLDER)'")
    search.add_argument("queries", nargs="*", metavar="query", help="none: one from each line of the standard input")
    search.add_argument("--k", type=int, default=3, help="documents for each query (default 3)")
    search.add_argument("--corpus", type=Path, help="documents, for a retriever that is described without an index")
    search.add_argument("--json", action="store_true", help="one JSON line a query instead of text")
    search.set_defaults(run=run_search)


def buildable() -> list[str]:
    """The retrievers that have a saved index."""
    return [name for name in retrievers.available() if _has_build(name)]


def _has_build(name: str) -> bool:
    try:
        plugins.find(retrievers, name, "build")
    except AttributeError:
        return False
    return True


def run_build(args: argparse.Namespace) -> None:
    """Make the corpus folder, then the index beside it."""
    if ":" not in args.kind and args.kind in retrievers.available() and not _has_build(args.kind):
        raise UnknownNameError(
            f"expected a retriever with an index of its own, got {args.kind!r}; do: name one of {buildable()}"
        )
    build = plugins.find(retrievers, args.kind, "build")
    options = read_options(args.option)
    if is_complete(args.output):
        raise OptionError(f"expected a folder without an index, got {args.output}; do: delete it or name another")
    plugins.check_options(build, args.kind, None, args.output, **options)  # before the corpus is read, which takes long
    started = time.monotonic()
    plugins.call(build, args.kind, open_corpus(args.corpus, args.output / "corpus"), args.output, **options)
    print(f"built in {time.monotonic() - started:.1f} s")
    describe(args.output)


def read_options(pairs: list[str]) -> dict[str, Any]:
    """``name=value`` pairs; a value that is no JSON is text, such as ``IVF1024,PQ64``.

    Raises:
        OptionError: a pair of another form, or a name twice.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier() or name in options:
            raise OptionError(f"expected --option NAME=VALUE, each name once, got {pair!r}; do: correct it")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def open_corpus(source: Path, folder: Path) -> Corpus:
    """The corpus in the folder ``source``, or that of the file ``source``, written into ``folder``.

    What a build that was stopped has written of the same file is used again.
    """
    if source.is_dir():
        return Corpus(source)
    if not source.exists():
        raise CorpusError(f"{source}: expected a file or a corpus folder, got none; do: check --corpus")
    about = source.stat()
    made_of = json.dumps({"path": str(source.resolve()), "size": about.st_size, "modified": about.st_mtime_ns})
    record = folder / "source.json"
    if record.is_file() and record.read_text(encoding="utf-8") == made_of:
        return Corpus(folder)
    record.unlink(missing_ok=True)
    corpus = write_corpus(progress(read_passages(source), "reading documents"), folder)
    record.write_text(made_of, encoding="utf-8")
    return corpus


def run_info(args: argparse.Namespace) -> None:
    """Print what ``index.json`` says and how large the files are."""
    describe(args.index)


def describe(path: Path) -> None:
    """Print an index's kind, options, documents and size."""
    saved = open_index(path)
    mine = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"retriever  {Spec(saved.kind, options={'index': str(path)})}")
    print(f"documents  {len(saved.corpus):,} in {saved.corpus.path}")
    print(f"options    {json.dumps(saved.options, ensure_ascii=False)}")
    print(f"size       {mine / 1e6:,.1f} MB, {mine / len(saved.corpus):,.0f} bytes a document")


def open_retriever(text: str, corpus: Path | None = None) -> Retriever:
    """The retriever of an index folder, or the one that is described."""
    path = Path(text)
    if path.is_dir():
        text = str(Spec(open_index(path).kind, options={"index": text}))
    return retrievers.load(text, load_corpus(corpus) if corpus else ())


def run_search(args: argparse.Namespace) -> None:
    """Print the documents for each query."""
    retriever = open_retriever(args.retriever, args.corpus)
    queries = args.queries or read_queries()
    for query, documents in zip(queries, retriever.search(queries, args.k), strict=True):
        if args.json:
            rows = [{"id": d.doc_id, "title": d.title, "text": d.text, "score": d.score} for d in documents]
            print(json.dumps({"query": query, "documents": rows}, ensure_ascii=False))
            continue
        print(query.encode(errors="replace").decode())
        for rank, document in enumerate(documents, 1):
            text = document.text if len(document.text) <= 160 else f"{document.text[:157]}..."
            print(f"  {rank}. [{document.score:.3f}] {document.title} ({document.doc_id})\n     {text}")


def read_queries() -> list[str]:
    """The lines of the standard input.

    Raises:
        OptionError: they are not UTF-8.
    """
    try:
        return sys.stdin.buffer.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise OptionError(f"expected queries in UTF-8 on the standard input, got {error}; do: convert them") from error
