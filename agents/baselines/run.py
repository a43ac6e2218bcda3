"""Prompting methods on questions, each question exactly once, with bootstrap intervals.

    python -m agents.baselines react --model MODEL --questions jsonl:QUESTIONS --corpus CORPUS --split all --limit 50
    python -m agents.baselines react --endpoint http://localhost:8000/v1 --endpoint-model NAME --questions …

``--run-dir`` receives ``config.json``, ``transcripts.jsonl`` and ``summary.json`` in the layout of ``agents.evaluate``.
A run that was interrupted goes on with ``--resume`` and ends with the same files, as far as the model is deterministic.
"""

from __future__ import annotations

import json
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console

from agents.baselines import prompting
from agents.baselines.text_agent import TextAgent, TextEpisode, describe_episode, play_wave
from agents.endpoint import EndpointConfig
from agents.evaluate import estimate, question_progress, table_of, to_plain
from agents.local_completion import LocalCompleter
from agents.models import choose_device, load_model
from agents.runlog import command_line, to_jsonable, write_config, write_json, write_text
from agents.tasks import REAL_TEXT, EnvConfig, make_envs, reuse
from search_gym import plugins
from search_gym.codec import ByteCodec, TokenCodec
from search_gym.completion import Completer
from search_gym.endpoint import EndpointCompleter
from search_gym.errors import OptionError
from search_gym.task import load_codec

BYTES_PER_TOKEN = 4
"""How many bytes of English text a token of a large vocabulary holds, about."""

# What may differ between a run and its continuation, because it does not touch any answer.
_FREE = {"command", "run_dir", "resume", "threads"}
_FREE_AT_ENDPOINT = {"api_key_env", "timeout", "retries", "backoff", "concurrency"}


@dataclass(frozen=True)
class PromptingConfig:
    """A prompting method, a model to run it on, and questions. A limit that is not given is Search-R1's."""

    method: tyro.conf.Positional[str]
    """Prompting method: "direct", "cot", "rag", "react", "ircot", "self_rag", "self_rag_tokens", "search_r1", or
    "package.module:make"."""
    model: str = ""
    """Model in this process: a Hugging Face directory or hub name, or a GGUF file."""
    endpoint: Annotated[EndpointConfig, tyro.conf.arg(name="")] = field(default_factory=EndpointConfig)
    """Model behind a server."""
    num_examples: int = 3
    """Worked examples in the prompt, 0 to 3; search_r1 and self_rag_tokens have none."""
    temperature: float = 0.0
    """Temperature of sampling; 0 is greedy."""
    questions: str = "tinywiki"
    """Question set: "tinywiki", "hotpotqa:FOLDER" (see docs/data.md), "jsonl:PATH", or "package.module:attribute"."""
    corpus: Path | None = None
    """JSON-lines file of passages, for question sets that bring none."""
    split: str = "test"
    """Split of the question set; "all" takes every question of a JSON-lines file."""
    kinds: tuple[str, ...] = ("1-hop", "2-hop")
    """TinyWiki: kinds of questions."""
    limit: int | None = None
    """Only the first so many questions."""
    retriever: str = "bm25"
    """Retriever: "bm25", "oracle", "random", "noisy", or "package.module:attribute"."""
    top_k: int = 3
    """Documents per search."""
    max_turns: int = 4
    """Turns before the last one, in which only an answer counts."""
    max_turn_tokens: int = 500
    """Tokens that the model may sample in one completion. A turn, which may say some of it twice, has room for twice as
    many."""
    max_observation_tokens: int = 500
    """Tokens that one search may append."""
    max_context_tokens: int = 8192
    """Tokens of an episode: the examples, which Search-R1's 4096 have no room for, and all turns and observations."""
    codec: str = ""
    """Tokenizer of the transcript: by default that of --model, and bytes for an endpoint. A limit counts four bytes as
    one token."""
    batch_size: int = 32
    """Questions that are played side by side."""
    seed: int = 0
    """Seed of sampling and of the bootstrap intervals."""
    run_dir: Path = Path("runs/baseline")
    """Where config.json, transcripts.jsonl and summary.json go; files of an earlier run are replaced."""
    resume: bool = False
    """Go on with an interrupted run of the same options in run_dir."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights of --model."""
    threads: int | None = None
    """Torch's CPU threads; by default torch decides."""
    device: str = "auto"
    """Where --model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""

    def __post_init__(self) -> None:
        """Raises OptionError: not one model, or a number out of range."""
        if bool(self.model) == bool(self.endpoint.url):
            raise OptionError(
                f"expected one model, got --model {self.model!r} and --endpoint {self.endpoint.url!r}; do: give one"
            )
        for name in ("limit", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionError(f"expected {name} >= 1, got {getattr(self, name)}; do: leave it out for the default")

    def env(self, codec: TokenCodec) -> EnvConfig:
        """The environment that these options describe, its limits in tokens of ``codec``."""
        names = {f.name for f in fields(EnvConfig)} & {f.name for f in fields(self)}
        config = replace(REAL_TEXT, **{name: getattr(self, name) for name in names})
        config = replace(config, max_turn_tokens=2 * self.max_turn_tokens)
        if not isinstance(codec, ByteCodec):
            return config
        limits = ("max_turn_tokens", "max_observation_tokens", "max_context_tokens")
        return replace(config, **{name: BYTES_PER_TOKEN * getattr(config, name) for name in limits})


def load_method(name: str, *, max_searches: int, num_examples: int) -> TextAgent:
    """The prompting method of that name, or ``"package.module:make"``.

    Raises:
        UnknownNameError: there is none; the message suggests the closest names.
    """
    make = plugins.find(prompting, name, "make")
    return plugins.call(make, name, max_searches=max_searches, num_examples=num_examples)


def load_completer(config: PromptingConfig) -> tuple[Completer, TokenCodec]:
    """The model of ``config``, and the codec of its transcripts."""
    if config.endpoint.url:
        completer = EndpointCompleter(config.endpoint, temperature=config.temperature, seed=config.seed)
        return completer, load_codec(config.codec or "byte")
    model, codec = load_model(config.model, getattr(torch, config.dtype))
    model.to(choose_device(config.device))  # pyright: ignore[reportArgumentType]
    completer = LocalCompleter(
        model, codec, temperature=config.temperature, seed=config.seed, batch_size=config.batch_size
    )
    return completer, load_codec(config.codec) if config.codec else codec


def main(config: PromptingConfig, console: Console | None = None) -> dict[str, Any]:
    """Run a method, write its files, show a table, and return what ``summary.json`` holds.

    Episodes are written as they end. A run on a model in this process goes on at the last whole batch of questions, so
    that it repeats the same batches; one on an endpoint repeats only questions that have not ended.

    Raises:
        SearchGymError: an option, the model, the endpoint or the retriever; what is written can be resumed.
    """
    console = console or Console()
    agent = load_method(config.method, max_searches=config.max_turns, num_examples=config.num_examples)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    path = config.run_dir / "transcripts.jsonl"
    rows = saved_rows(config, path) if config.resume else []
    completer, codec = load_completer(config)
    with closing(completer) if isinstance(completer, EndpointCompleter) else nullcontext():
        envs = make_envs(config.env(codec), codec, 1, prompt_fn=agent.prompt)
        num_questions = min(len(envs.task.questions), config.limit or len(envs.task.questions))
        if not rows:
            path.unlink(missing_ok=True)  # before the options that a later --resume trusts are replaced
        (config.run_dir / "summary.json").unlink(missing_ok=True)
        write_config(config.run_dir, config)
        if config.model and len(rows) != num_questions:
            rows = _whole_batches(rows, config.batch_size)
        write_text(path, _lines(rows))
        done = {row["question_index"] for row in rows}
        remaining = [index for index in range(num_questions) if index not in done]
        num_envs = min(config.batch_size, max(1, len(remaining)))
        envs = make_envs(config.env(codec), codec, num_envs, prompt_fn=agent.prompt, **reuse(envs))
        with question_progress(console, num_questions) as report, path.open("a", encoding="utf-8") as file:

            def keep(episode: TextEpisode) -> None:
                rows.append(describe_episode(episode, codec, label=config.method))
                file.write(_lines(rows[-1:]))
                file.flush()
                report(len(rows))

            report(len(rows))
            for start in range(0, len(remaining), num_envs):
                wave = remaining[start : start + num_envs]
                play_wave(agent, completer, envs, wave, max_tokens=config.max_turn_tokens, on_finished=keep)

    rows.sort(key=lambda row: row["question_index"])
    write_text(path, _lines(rows))
    estimates = estimate(rows, [row["kind"] for row in rows], config.seed)
    summary = {
        "command": command_line(),
        "config": to_jsonable(config),
        "seed": config.seed,
        "num_questions": len(rows),
        "metrics": to_plain(estimates),
    }
    write_json(config.run_dir / "summary.json", summary)
    name = config.model or f"{config.endpoint.model} at {config.endpoint.base_url}"
    console.print(table_of(estimates, title=f"{config.method}, {name}: {len(rows)} questions"))
    return summary


def saved_rows(config: PromptingConfig, transcripts: Path) -> list[dict[str, Any]]:
    """The rows that an interrupted run of the same options has written, without a last one that is half written.

    Raises:
        OptionError: the run had other options.
    """
    path = config.run_dir / "config.json"
    if not path.exists() or not transcripts.exists():
        return []
    theirs, ours = _answering(json.loads(path.read_text(encoding="utf-8"))), _answering(to_jsonable(config))
    different = sorted(name for name in ours if theirs.get(name) != ours[name])
    if different:
        raise OptionError(
            f"expected the options of the run in {config.run_dir} to resume it, got other values of {different}; "
            "do: repeat them (they are in its config.json), choose another run_dir, or leave out --resume"
        )
    *lines, _ = transcripts.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _answering(config: dict[str, Any]) -> dict[str, Any]:
    """The options that answers depend on."""
    endpoint = {name: value for name, value in config.get("endpoint", {}).items() if name not in _FREE_AT_ENDPOINT}
    return {name: value for name, value in config.items() if name not in _FREE} | {"endpoint": endpoint}


def _whole_batches(rows: list[dict[str, Any]], batch_size: int) -> list[dict[str, Any]]:
    """The rows of the batches of questions that have ended as a whole."""
    done = {row["question_index"] for row in rows}
    stop = next(index for index in range(len(done) + 1) if index not in done) // batch_size * batch_size
    return [row for row in rows if row["question_index"] < stop]


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
