"""Describe, show, check and measure question sets.

    search-gym data info                                      # sets, splits, sizes, licences; what is on this machine
    search-gym data info DATA                                 # the same, with the files of the folder DATA
    search-gym data show hotpotqa:DATA --split train -n 5     # the first questions of DATA/hotpotqa/train.jsonl
    search-gym data show nq --option streaming=true -n 5      # from the hub, without downloading the rest
    search-gym data validate nq_hotpotqa:DATA bamboogle:DATA  # every row of every split; exit code 2 on errors
    search-gym data ceiling hotpotqa:DATA --corpus wiki.jsonl --retriever bm25 --retriever 'noisy(bm25)' -k 1 3 5
    search-gym data ceiling nq --retriever wiki/bm25 --limit 500 --json

SET is a name that `info` lists, 'jsonl:FILE', or 'package.module:attribute'. A folder after a name's colon holds the
files of the set: nq/train.jsonl, or nq.jsonl for all splits; .jsonl.gz and .parquet, too. Without it they come from
the hub.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from search_gym import questions, retrievers
from search_gym._progress import progress
from search_gym.cli.index import open_retriever, read_options
from search_gym.corpus import load_corpus, read_passages
from search_gym.errors import OptionError, QuestionError
from search_gym.questions import Question, QuestionSet, nq
from search_gym.questions._checks import Finding, check_overlap, check_questions, check_size
from search_gym.questions._flashrag import AbsentError, FlashRAGSet, Mixture
from search_gym.recall import Recall, Share, answer_recall
from search_gym.retrievers import Document, Retriever

HELP = "describe, show, check and measure question sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands info, show, validate and ceiling."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="list the sets, their splits and sizes, licences, and what is here")
    info.add_argument("data_dir", nargs="?", type=Path, metavar="DATA", help="folder to look for their files in")
    info.set_defaults(run=run_info)

    show = commands.add_parser("show", help="print the first questions of a set")
    show.add_argument("set", metavar="SET")
    show.add_argument("-n", type=int, default=3, help="how many (default 3)")
    show.add_argument("--json", action="store_true", help="one JSON line a question instead of text")

    validate = commands.add_parser("validate", help="check every row of sets; exit code 2 if there are errors")
    validate.add_argument("sets", nargs="+", metavar="SET")
    validate.add_argument("--corpus", type=Path, help="passages among which the gold ones have to be")

    ceiling = commands.add_parser("ceiling", help="how often the first k documents hold an answer, and gold passages")
    ceiling.add_argument("set", metavar="SET")
    ceiling.add_argument(
        "--retriever",
        action="append",
        help="folder of an index or a retriever's description; may be repeated (default bm25)",
    )
    ceiling.add_argument("--corpus", type=Path, help="passages, for retrievers that are described without an index")
    ceiling.add_argument(
        "-k", type=int, nargs="+", default=[1, 3, 5, 10], help="numbers of documents (default 1 3 5 10)"
    )
    ceiling.add_argument("--limit", type=int, help="ask only the first questions")
    ceiling.add_argument("--batch-size", type=int, default=256, help="questions of one search (default 256)")
    ceiling.add_argument("--json", action="store_true", help="one JSON object instead of a table")

    for command, run in ((show, run_show), (validate, run_validate), (ceiling, run_ceiling)):
        command.add_argument(
            "--split", help="split to take (default: test, or all of a jsonl file; validate: every one)"
        )
        command.add_argument(
            "--option", action="append", default=[], metavar="NAME=VALUE", help="option of the set; may be repeated"
        )
        command.set_defaults(run=run)


def set_module(name: str) -> ModuleType:
    """The module of a set of this package."""
    return importlib.import_module(f"{questions.__name__}.{name}")


def benchmark(spec: str) -> FlashRAGSet | Mixture | None:
    """What is known of a benchmark's set; None of any other."""
    name = spec.partition(":")[0]
    return vars(set_module(name)).get("SET") if name in questions.available() else None


def run_info(args: argparse.Namespace) -> None:
    """Print a paragraph for each set."""
    for name in questions.available():
        known = benchmark(name)
        if isinstance(known, FlashRAGSet):
            print(f"{name}: {known.title}; {known.citation}; licence: {known.licence}")
            for split, size in known.sizes.items():
                tested = "  (as test)" if split == known.test_split != "test" else ""
                print(f"  {split:<6} {size:>7,}  {whereabouts(known, split, args.data_dir)}{tested}")
        elif known is not None:
            print(f"{name}: {known.title}; ids begin with the set's name")
            for split, size in known.sizes.items():
                print(f"  {split:<6} {size:>7,}")
        else:
            print(f"{name}: {(set_module(name).__doc__ or '').splitlines()[0]}")
    if args.data_dir is None:
        print("\nWhat is not here is downloaded from the hub when it is asked for. To bring a file into a folder DATA:")
        print(f"  {nq.SET.download_command('train', 'DATA')}")


def whereabouts(known: FlashRAGSet, split: str, data_dir: Path | None) -> str:
    """Where the file of a split is on this machine."""
    if data_dir is None:
        return "in the hub's cache" if known.is_cached(split) else "not here"
    try:
        file = known.find(split, data_dir)
    except AbsentError:
        return "not here"
    return f"in {file.path}" + (" with other splits" if file.has_all_splits else "")


def run_show(args: argparse.Namespace) -> None:
    """Print the first questions."""
    if args.n < 1:
        raise OptionError(f"expected -n of at least 1, got {args.n}; do: ask for one question or more")
    options = read_options(args.option)
    limit = {"limit": args.n} if options.get("streaming") else {}
    split = args.split or ("all" if args.set.startswith("jsonl:") else "test")
    found = questions.load(args.set, split, **{**limit, **options})
    for question in found[: args.n]:
        if args.json:
            row = {"id": question.question_id, "question": question.text, "golden_answers": list(question.answers)}
            print(json.dumps({**row, "metadata": dict(question.metadata)}, ensure_ascii=False))
            continue
        print(f"{question.question_id}  {question.text}")
        values = {"answers": " | ".join(question.answers), **question.metadata}
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"  {key:<16} {text if len(text) <= 100 else text[:97] + '...'}")
    if not args.json and not limit:
        print(f"{min(args.n, len(found)):,} of {len(found):,} questions")


def run_validate(args: argparse.Namespace) -> None:
    """Print what was found in each set.

    Raises:
        QuestionError: there were errors.
    """
    corpus = None
    if args.corpus:
        documents = load_corpus(args.corpus) if args.corpus.is_dir() else read_passages(args.corpus)
        corpus = frozenset(document.doc_id for document in progress(documents, "reading documents"))
    errors = 0
    for spec in args.sets:
        findings = validate(spec, args.split, read_options(args.option), corpus)
        for finding in findings:
            print(f"  {'error' if finding.is_error else 'note '}  {finding.text}")
        errors += sum(finding.is_error for finding in findings)
    if errors:
        raise QuestionError(f"expected sound question sets, got {errors} of the errors above; do: correct them")


def validate(spec: str, split: str | None, options: Mapping[str, Any], doc_ids: frozenset[str] | None) -> list[Finding]:
    """Print what there is of the set, and return what is wrong with it or worth knowing."""
    known = benchmark(spec)
    default = known.sizes if known else ("all",) if spec.startswith("jsonl:") else ("train", "test")
    findings: list[Finding] = []
    splits: dict[str, Sequence[Question]] = {}
    for name in (split,) if split else default:
        try:
            splits[name] = questions.load(spec, name, **options)
        except AbsentError as error:
            findings.append(Finding(split is not None, f"{name}: {error}"))
        except QuestionError as error:
            findings.append(Finding(True, f"{name}: {error}"))
    print(f"{spec}: " + (", ".join(f"{name} {len(found):,}" for name, found in splits.items()) or "no questions"))
    if not splits:
        findings = [Finding(True, finding.text) for finding in findings]
    for name, found in splits.items():
        if known and name in known.sizes:
            findings += check_size(name, len(found), known.sizes[name])
        brought = isinstance(found, QuestionSet) and found.documents
        ids = frozenset(d.doc_id for d in brought) if brought else doc_ids
        findings += check_questions(name, progress(found, f"checking {name}", unit="question"), ids)
    return findings + check_overlap(splits)


def run_ceiling(args: argparse.Namespace) -> None:
    """Print recall for each retriever and k."""
    if args.limit is not None and args.limit < 1:
        raise OptionError(f"expected --limit of at least 1, got {args.limit}; do: leave it out to ask all questions")
    split = args.split or ("all" if args.set.startswith("jsonl:") else "test")
    found = questions.load(args.set, split, **read_options(args.option))
    asked = found[: args.limit] if args.limit is not None else found
    documents: Sequence[Document] = load_corpus(args.corpus) if args.corpus else ()
    if not args.corpus and isinstance(found, QuestionSet):
        documents = found.documents
    results: dict[str, Recall] = {}
    for text in args.retriever or ["bm25"]:
        retriever: Retriever = open_retriever(text) if Path(text).is_dir() else retrievers.load(text, documents)
        waiting = progress(asked, text, total=len(asked), unit="question")
        results[text] = answer_recall(waiting, retriever, args.k, batch_size=args.batch_size)
    if args.json:
        print(json.dumps(as_json(args.set, split, results), indent=2, ensure_ascii=False))
        return
    recall = next(iter(results.values()))
    print(f"{args.set}, split {split}: {recall.num_questions:,} questions")
    if recall.num_without_span:
        share = recall.num_without_span / recall.num_questions
        print(f"not counted in the answers: {recall.num_without_span:,} ({share:.1%}) that are answered by yes or no")
    print(f"\n{'retriever':<30} {'k':>3}   {'an answer':<22}{'gold passages':<22}all gold passages")
    for text, recall in results.items():
        for at in recall.at:
            shares = "".join(f"{show_share(share):<22}" for share in (at.answer, at.passages, at.all_passages))
            print(f"{text:<30} {at.k:>3}   {shares.rstrip()}")


def show_share(share: Share | None) -> str:
    """The mean and its interval."""
    return "-" if share is None else f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"


def as_json(spec: str, split: str, results: dict[str, Recall]) -> dict[str, Any]:
    """The results as plain data."""
    recall = next(iter(results.values()))
    return {
        "questions": spec,
        "split": split,
        "num_questions": recall.num_questions,
        "num_without_span": recall.num_without_span,
        "num_without_passages": recall.num_without_passages,
        "retrievers": {
            text: [
                {"k": at.k, **{name: value and value._asdict() for name, value in at._asdict().items() if name != "k"}}
                for at in recall.at
            ]
            for text, recall in results.items()
        },
    }
