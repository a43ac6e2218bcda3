"""Let a model behind an OpenAI-compatible server play the environment, each question once, with intervals.

    search-gym eval --endpoint http://localhost:8000/v1 --model NAME
    search-gym eval --endpoint URL --model NAME --questions hotpotqa:DATA --retriever wiki/bm25 --limit 500
    search-gym eval --endpoint URL --model NAME --api completions --questions jsonl:q.jsonl --corpus wiki.jsonl

The model gets Search-R1's prompt and writes <search> and <answer> itself. The API key is read from OPENAI_API_KEY.
--run-dir receives config.json, transcripts.jsonl (a line an episode, as they end) and summary.json; a run that was
stopped, or whose server failed for good, goes on with --resume and keeps every episode that had ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym

from search_gym._progress import progress
from search_gym.cli.index import open_retriever, read_options
from search_gym.codec import ByteCodec
from search_gym.completion import TURN_ENDS
from search_gym.conversations import describe, play
from search_gym.endpoint import EndpointCompleter, EndpointConfig
from search_gym.env import SearchEnv
from search_gym.errors import OptionError
from search_gym.estimates import METRICS, Estimate, estimate, to_plain
from search_gym.task import Task, load_codec

HELP = "let a model behind an OpenAI-compatible server play the environment"

BYTES_PER_TOKEN = 4
"""How many bytes of English text a token of a large vocabulary holds, about."""

# What may differ between a run and its continuation, because it touches no answer.
_FREE = {"run_dir", "resume", "api_key_env", "timeout", "retries", "backoff", "concurrency"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The server, the model, the environment, and where the run goes."""
    asked = EndpointConfig()
    parser.add_argument("--endpoint", required=True, metavar="URL", help="such as http://localhost:8000/v1")
    parser.add_argument("--model", required=True, metavar="NAME", help="the model's name on that server")
    parser.add_argument(
        "--api",
        choices=("chat", "completions"),
        default="chat",
        help="chat: each turn and each observation is a message; completions: one text goes on (default %(default)s)",
    )
    for name, text in (
        ("api_key_env", "environment variable that holds the API key"),
        ("timeout", "seconds that a whole reply may take"),
        ("retries", "how often a request is sent again after a failure that may pass"),
        ("backoff", "seconds before the first retry, doubled each time"),
        ("concurrency", "episodes that are played at the same time"),
    ):
        value = getattr(asked, name)
        _add(parser, name, type=type(value), default=value, help=f"{text} (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of the intervals (default %(default)s)")

    parser.add_argument(
        "--questions", default="tinywiki", metavar="SET", help="see `search-gym data` (default tinywiki)"
    )
    parser.add_argument("--split", help="default: test, or all of a jsonl file")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the set")
    parser.add_argument("--limit", type=int, help="only the first so many questions")
    parser.add_argument("--retriever", default="bm25", help="folder of an index or a description (default bm25)")
    parser.add_argument("--corpus", type=Path, help="passages, for a retriever that is described without an index")
    for name, value, text in (
        ("top_k", 3, "documents a search"),
        ("max_turns", 4, "turns before the last one, in which only an answer counts"),
        ("max_turn_tokens", 500, "tokens of a turn"),
        ("max_observation_tokens", 500, "tokens that a search appends"),
        ("max_context_tokens", 4096, "tokens of an episode"),
    ):
        _add(parser, name, type=int, default=value, help=f"{text} (default %(default)s)")
    parser.add_argument(
        "--codec", default="byte", help="tokenizer that limits count in; byte, the default, counts 4 bytes as a token"
    )
    parser.add_argument("--prompt", default="search_r1", help='"search_r1", "tinywiki" or "package.module:function"')
    parser.add_argument(
        "--on-retrieval-error",
        choices=("raise", "observe"),
        default="raise",
        help="end the run, or tell the model (default %(default)s)",
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs/endpoint"), help="default %(default)s")
    parser.add_argument("--resume", action="store_true", help="go on with a run of the same options in --run-dir")
    parser.set_defaults(run=run_eval)


def _add(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    parser.add_argument(f"--{name.replace('_', '-')}", **options)


def run_eval(args: argparse.Namespace) -> None:
    """Play, write the files and print a table.

    Raises:
        EndpointError: the server failed for good; what is written can be resumed.
    """
    summary = evaluate(args)
    estimates = summary["metrics"]
    width = max(len(kind) for kind in estimates) + 2
    print(f"{args.model} at {args.endpoint}: {summary['num_questions']:,} questions, mean [95 % interval]\n")
    print("".join(f"{name:<22}" for name in ("".ljust(width), *METRICS)).rstrip())
    for kind, by_metric in estimates.items():
        cells = "".join(f"{_show(Estimate(**by_metric[metric])):<22}" for metric in METRICS)
        print(f"{kind:<22}{cells}".rstrip())
    print(f"\n{args.run_dir / 'transcripts.jsonl'}")


def _show(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Run the evaluation that ``args`` describe and return what ``summary.json`` holds.

    Raises:
        OptionError: ``limit`` below 1, or ``resume`` in a folder of other options.
    """
    if args.limit is not None and args.limit < 1:
        raise OptionError(f"expected --limit of at least 1, got {args.limit}; do: leave it out to ask all questions")
    asked = EndpointConfig(
        args.endpoint,
        args.model,
        args.api,
        args.api_key_env,
        args.timeout,
        args.retries,
        args.backoff,
        args.concurrency,
    )
    options = _options(args)
    transcripts = args.run_dir / "transcripts.jsonl"
    rows = _saved_rows(args.run_dir, options) if args.resume else []
    with closing(EndpointCompleter(asked, temperature=args.temperature, seed=args.seed)) as completer:
        task = make_task(args)
        num_questions = min(len(task.questions), args.limit or len(task.questions))
        args.run_dir.mkdir(parents=True, exist_ok=True)
        if not rows:
            transcripts.unlink(missing_ok=True)  # before the options that a later --resume trusts are replaced
        (args.run_dir / "summary.json").unlink(missing_ok=True)
        _write(args.run_dir / "config.json", json.dumps(options, indent=2) + "\n")
        _write(transcripts, "".join(map(_line, rows)))
        done = {row["question_index"] for row in rows}
        remaining = [index for index in range(num_questions) if index not in done]

        def converse(conversations: Sequence[Sequence[str]]) -> Any:
            return completer.converse(conversations, stop=TURN_ENDS, max_tokens=args.max_turn_tokens)

        episodes = play(task, converse, remaining, num_slots=asked.concurrency)
        with transcripts.open("a", encoding="utf-8") as file:
            for one in progress(episodes, args.model, total=len(remaining), unit="episode"):
                rows.append(describe(one, label=args.model))
                file.write(_line(rows[-1]))
                file.flush()
    rows.sort(key=lambda row: row["question_index"])
    _write(transcripts, "".join(map(_line, rows)))
    metrics = to_plain(estimate(rows, [row["kind"] for row in rows], args.seed))
    summary = {"config": options, "num_questions": len(rows), "metrics": metrics}
    _write(args.run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def make_task(args: argparse.Namespace) -> Task:
    """The environment that ``args`` describe."""
    retriever: Any = open_retriever(args.retriever) if Path(args.retriever).is_dir() else args.retriever
    codec = load_codec(args.codec)
    scale = BYTES_PER_TOKEN if isinstance(codec, ByteCodec) else 1
    limits = ("max_turn_tokens", "max_observation_tokens", "max_context_tokens")
    env = gym.make(
        "search_gym/SearchQA-v0",
        questions=args.questions,
        split=args.split or ("all" if args.questions.startswith("jsonl:") else "test"),
        question_options=read_options(args.option) or None,
        retriever=retriever,
        corpus=args.corpus,
        codec=codec,
        prompt_fn=args.prompt,
        top_k=args.top_k,
        max_turns=args.max_turns,
        on_retrieval_error=args.on_retrieval_error,
        **{name: scale * getattr(args, name) for name in limits},
    ).unwrapped
    assert isinstance(env, SearchEnv)
    return env.task


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a run as plain data."""
    values = {name: value for name, value in vars(args).items() if name not in ("run", "resume", "run_dir")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def _saved_rows(run_dir: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that a stopped run of the same options has written, without a last one that is half written.

    Raises:
        OptionError: the run had other options.
    """
    config, transcripts = run_dir / "config.json", run_dir / "transcripts.jsonl"
    if not config.exists() or not transcripts.exists():
        return []
    theirs = json.loads(config.read_text(encoding="utf-8"))
    different = sorted(name for name in options.keys() - _FREE if theirs.get(name) != options[name])
    if different:
        raise OptionError(
            f"expected the options of the run in {run_dir} to resume it, got other values of {different}; "
            "do: repeat them (they are in its config.json), choose another --run-dir, or leave out --resume"
        )
    *lines, _ = transcripts.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _write(path: Path, text: str) -> None:
    """Replace the file as a whole, so that a run that is killed leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
