"""What a run leaves in its folder, read back and checked: configuration, metrics, summary, transcripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.health import Alarm
from search_gym.errors import SearchGymError
from search_gym.render import AUTHORS
from search_gym.transcript import Span

_TOKEN_VALUES = {"logprobs": "log-probability", "values": "value", "advantages": "advantage"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One episode: who wrote which tokens, and the numbers that belong to the sampled ones (NaN elsewhere)."""

    label: str
    question: str
    answers: tuple[str, ...]
    kind: str
    answer: str | None
    em: float
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
    train_seconds: float | None
    seed: int | None
    before: Scores
    after: Scores
    baselines: Sequence[Scores]
    samples: Sequence[Sample]
    alarms: Sequence[Alarm] = ()
    """In the order in which they went off; the updates of some may have been given up."""


def load_run(run_dir: Path) -> Run:
    """Read a run folder.

    Raises:
        SearchGymError: a file is missing or malformed; the message names the file and the line or field.
    """
    path = run_dir / "summary.json"
    summary = _parse(_read(path), str(path))
    intervals = summary.get("intervals", {})
    try:
        before, after = (
            _scores(key, summary[f"em_{key}"], intervals.get(f"em_{key}", {})) for key in ("before", "after")
        )
        baselines = [
            _scores(name, em, intervals.get("baselines", {}).get(name, {}))
            for name, em in summary.get("baselines", {}).items()
        ]
        train_seconds = float(summary["train_seconds"]) if "train_seconds" in summary else None
        seed = int(summary["seed"]) if "seed" in summary else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _malformed(
            str(path), "em_before, em_after and baselines by kind, and the numbers train_seconds and seed", error
        ) from error
    config_path = run_dir / "config.json"
    rows = list(_read_lines(run_dir / "metrics.jsonl"))
    abandoned_path = run_dir / "abandoned.jsonl"
    abandoned = list(_read_lines(abandoned_path)) if abandoned_path.exists() else []
    return Run(
        name=run_dir.resolve().name,
        config=_parse(_read(config_path), str(config_path)),
        metrics=[_metrics(row, where) for where, row in rows],
        train_seconds=train_seconds,
        seed=seed,
        before=before,
        after=after,
        baselines=baselines,
        samples=[_sample(row, where) for where, row in _read_lines(run_dir / "transcripts.jsonl")],
        alarms=sorted(
            (alarm for where, row in (*abandoned, *rows) for alarm in _alarms(row, where)),
            key=lambda alarm: alarm.update,
        ),
    )


def _malformed(where: str, expected: str, got: object) -> SearchGymError:
    return SearchGymError(f"expected {expected} in {where}, got {got!r}; do: train again, or restore the file")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _malformed(str(path), "a readable file", error) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise _malformed(where, "a JSON object", error) from error
    if not isinstance(data, dict):
        raise _malformed(where, "a JSON object", data)
    return data


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_read(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parse(line, where)


def _metrics(row: Mapping[str, Any], where: str) -> dict[str, float]:
    try:
        return {name: math.nan if value is None else float(value) for name, value in row.items() if name != "alarms"}
    except (TypeError, ValueError) as error:
        raise _malformed(where, "a number for each metric", error) from error


def _alarms(row: Mapping[str, Any], where: str) -> list[Alarm]:
    try:
        return [Alarm(str(a["name"]), int(row["update"]), str(a["message"])) for a in row.get("alarms", ())]
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(where, "alarms with name and message", error) from error


def _scores(name: str, em: Mapping[str, float], intervals: Mapping[str, Sequence[float]]) -> Scores:
    bounds = {kind: (float(low), float(high)) for kind, (low, high) in intervals.items()}
    return Scores(name, {kind: float(score) for kind, score in em.items()}, bounds)


def _sample(row: Mapping[str, Any], where: str) -> Sample:
    try:
        tokens = tuple(map(str, row["tokens"]))
        spans = tuple(Span(span["kind"], int(span["start"]), int(span["stop"])) for span in row["spans"])
        arrays = {
            name: np.array([np.nan if value is None else value for value in row[key]], dtype=np.float64)
            for key, name in _TOKEN_VALUES.items()
            if key in row
        }
        sample = Sample(
            label=str(row["label"]),
            question=str(row["question"]),
            answers=tuple(map(str, row["answers"])),
            kind=str(row["kind"]),
            answer=row["answer"],
            em=float(row["em"]),
            spans=spans,
            tokens=tokens,
            token_values=arrays,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(where, "an episode with all its fields", error) from error
    edges = [0, *(span.stop for span in spans)]
    if [*(span.start for span in spans), len(tokens)] != edges or not {span.kind for span in spans} <= AUTHORS.keys():
        raise _malformed(where, f"spans of {sorted(AUTHORS)} that cover {len(tokens)} tokens", spans)
    for name, array in arrays.items():
        if array.shape != (len(tokens),):
            raise _malformed(where, f"one {name} for each of {len(tokens)} tokens", f"shape {array.shape}")
    return sample
