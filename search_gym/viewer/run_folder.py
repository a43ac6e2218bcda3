"""What a run leaves in its folder, read back and checked: configuration, metrics, scores, transcripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from search_gym.errors import SearchGymError
from search_gym.render import AUTHORS
from search_gym.transcript import Span

TOKEN_VALUES = {"logprobs": "log-probability", "values": "value", "advantages": "advantage", "ratios": "ratio"}
"""Names of the numbers of tokens: in ``transcripts.jsonl``, and on the page."""
TRANSCRIPTS = ("training_transcripts.jsonl", "transcripts.jsonl")
"""Files of episodes, the ones that were trained on first."""


class Alarm(NamedTuple):
    """What a run's watch over its metrics has said in an update."""

    name: str
    update: int
    message: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode: who wrote which tokens, and the numbers that belong to the sampled ones (NaN elsewhere)."""

    label: str
    question: str
    answers: tuple[str, ...]
    kind: str
    answer: str | None
    em: float
    reward: float
    searches: int | None
    spans: tuple[Span, ...]
    tokens: tuple[str, ...]
    token_values: Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Exact match of one policy by kind of question, with 95 % intervals where they are known."""

    name: str
    em: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder holds."""

    name: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float]]
    seconds: float | None
    """Of training."""
    seed: int | None
    scores: Sequence[Scores]
    """Policies that were evaluated, in the order of the table: "before", others, "after"."""
    samples: Sequence[Sample]
    alarms: Sequence[Alarm] = ()
    """In the order of their updates; some of these may have been given up."""


def load_run(run_dir: Path) -> Run:
    """Read a run folder: ``config.json`` and ``metrics.jsonl``, and what else is there.

    Raises:
        SearchGymError: a file is missing or malformed; the message names the file and the line or field.
    """
    config = read_object(run_dir / "config.json")
    rows = list(read_rows(run_dir / "metrics.jsonl"))
    abandoned_path = run_dir / "abandoned.jsonl"
    abandoned = list(read_rows(abandoned_path)) if abandoned_path.exists() else []
    metrics = [_metrics(row, where) for where, row in rows]
    summary_path, result_path = run_dir / "summary.json", run_dir / "result.json"
    scores: list[Scores] = []
    seconds, seed = None, config.get("seed")
    if summary_path.exists():
        scores, seconds, stated = _summary(read_object(summary_path), str(summary_path))
        seed = seed if stated is None else stated
    elif result_path.exists():
        scores = [_result(read_object(result_path), str(result_path))]
    if seconds is None and metrics:
        seconds = metrics[-1].get("time/seconds")
    return Run(
        name=run_dir.resolve().name,
        config=config,
        metrics=metrics,
        seconds=seconds,
        seed=seed,
        scores=scores,
        samples=list(read_samples(run_dir)),
        alarms=sorted(
            (alarm for where, row in (*abandoned, *rows) for alarm in _alarms(row, where)),
            key=lambda alarm: alarm.update,
        ),
    )


def read_samples(run_dir: Path) -> Iterator[Sample]:
    """The episodes that a run has kept, in the order of `TRANSCRIPTS`.

    Raises:
        SearchGymError: one is malformed.
    """
    for path in (run_dir / name for name in TRANSCRIPTS):
        if path.exists():
            yield from (_sample(row, where) for where, row in read_rows(path))


def malformed(where: str, expected: str, got: object) -> SearchGymError:
    """The error for a file that does not hold what it should."""
    return SearchGymError(f"expected {expected} in {where}, got {got!r}; do: train again, or restore the file")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        SearchGymError: there is no such file, or it holds something else.
    """
    return _parse(_read(path), str(path))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object of a file that has one a line, with the words that say where it stands.

    Raises:
        SearchGymError: there is no such file, or a line holds something else.
    """
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise malformed(str(path), "a readable file", error) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise malformed(where, "a JSON object", error) from error
    if not isinstance(data, dict):
        raise malformed(where, "a JSON object", data)
    return data


def _metrics(row: Mapping[str, Any], where: str) -> dict[str, float]:
    try:
        return {name: math.nan if value is None else float(value) for name, value in row.items() if name != "alarms"}
    except (TypeError, ValueError) as error:
        raise malformed(where, "a number for each metric", error) from error


def _alarms(row: Mapping[str, Any], where: str) -> list[Alarm]:
    try:
        return [Alarm(str(a["name"]), int(row["update"]), str(a["message"])) for a in row.get("alarms", ())]
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(where, "alarms with name and message", error) from error


def _summary(summary: Mapping[str, Any], where: str) -> tuple[list[Scores], float | None, int | None]:
    """Scores, seconds of training and seed in a ``summary.json``."""
    intervals = summary.get("intervals", {})
    try:
        before, after = (
            _scores(key, summary[f"em_{key}"], intervals.get(f"em_{key}", {})) for key in ("before", "after")
        )
        baselines = [
            _scores(name, em, intervals.get("baselines", {}).get(name, {}))
            for name, em in summary.get("baselines", {}).items()
        ]
        seconds = float(summary["train_seconds"]) if "train_seconds" in summary else None
        seed = int(summary["seed"]) if "seed" in summary else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise malformed(
            where, "em_before, em_after and baselines by kind, and the numbers train_seconds and seed", error
        ) from error
    # What training should beat stands above its result, the ceiling below.
    ceiling = [row for row in baselines if row.name == "oracle"]
    return [before, *(row for row in baselines if row.name != "oracle"), after, *ceiling], seconds, seed


def _result(result: Mapping[str, Any], where: str) -> Scores:
    """The held-out scores in the ``result.json`` of one run of a study."""
    try:
        em = {kind: by_metric["em"] for kind, by_metric in result["held_out"].items() if kind != "all"}
        return _scores(
            "after",
            {kind: score["mean"] for kind, score in em.items()},
            {kind: (score["low"], score["high"]) for kind, score in em.items() if "low" in score},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise malformed(where, "exact match by kind under 'held_out'", error) from error


def _scores(name: str, em: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> Scores:
    bounds = {kind: (float(low), float(high)) for kind, (low, high) in intervals.items()}
    return Scores(name, {kind: float(score) for kind, score in em.items()}, bounds)


def _sample(row: Mapping[str, Any], where: str) -> Sample:
    try:
        tokens = tuple(map(str, row["tokens"]))
        spans = tuple(Span(span["kind"], int(span["start"]), int(span["stop"])) for span in row["spans"])
        arrays = {
            name: np.array([np.nan if value is None else value for value in row[key]], dtype=np.float64)
            for key, name in TOKEN_VALUES.items()
            if key in row
        }
        em = float(row["em"])
        sample = Sample(
            label=str(row["label"]),
            question=str(row["question"]),
            answers=tuple(map(str, row["answers"])),
            kind=str(row["kind"]),
            answer=row["answer"],
            em=em,
            reward=float(row.get("reward", em)),
            searches=int(row["searches"]) if "searches" in row else None,
            spans=spans,
            tokens=tokens,
            token_values=arrays,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise malformed(where, "an episode with all its fields", error) from error
    edges = [0, *(span.stop for span in spans)]
    if [*(span.start for span in spans), len(tokens)] != edges or not {span.kind for span in spans} <= AUTHORS.keys():
        raise malformed(where, f"spans of {sorted(AUTHORS)} that cover {len(tokens)} tokens", spans)
    for name, array in arrays.items():
        if array.shape != (len(tokens),):
            raise malformed(where, f"one {name} for each of {len(tokens)} tokens", f"shape {array.shape}")
    return sample
