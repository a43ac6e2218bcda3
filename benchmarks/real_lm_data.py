"""Real questions for `benchmarks.real_lm`: sets joined over one corpus of short passages, and a split by recorded ids.

    python -m benchmarks.real_lm_data --data DATA      # writes benchmarks/real_lm_split.json

The split file names ids and nothing else; the questions stay in the folder that ``--data`` names.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from agents.runlog import write_json
from search_gym import Document, Question, TokenCodec, questions
from search_gym.corpus import load_corpus
from search_gym.errors import OptionError, SearchGymError
from search_gym.rewards import normalize_answer

SETS = ("hotpotqa", "2wikimultihopqa", "nq")
SPLIT = Path(__file__).with_name("real_lm_split.json")
HELD_OUT = 1 / 3


@dataclass(frozen=True)
class RealText:
    """Questions to train on, questions to be judged by, and the passages of all sets."""

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]
    documents: tuple[Document, ...]


def load(data: Path, split: Path, codec: TokenCodec, *, passage_tokens: int, limit: int | None = None) -> RealText:
    """The questions of all sets in ``data`` and their passages, each cut to ``passage_tokens`` tokens.

    A question's ``metadata["set"]`` names its set, ``metadata["kind"]`` the set and its own type, and
    ``metadata["yes_no"]`` says whether it is answered by yes or no. ``limit`` keeps so many questions of each part and
    set.

    Raises:
        OptionError: ``data`` holds no set, or ``split`` names a question that is not there.
    """
    held_out = json.loads(split.read_text(encoding="utf-8"))["held_out"]
    parts: dict[bool, list[Question]] = {False: [], True: []}
    documents: list[Document] = []
    for name in _present(data):
        rows = read_set(data, name)
        ids = set(held_out.get(name, ()))
        if absent := sorted(ids - {question.question_id for question in rows}):
            raise OptionError(
                f"expected the held-out questions of {split} in {data / name}.jsonl, got none with the ids "
                f"{absent[:3]} ({len(absent)} in all); do: use the questions that the split was made for, or write "
                "another one with python -m benchmarks.real_lm_data"
            )
        for is_held_out, found in parts.items():
            found += [row for row in rows if (row.question_id in ids) is is_held_out][:limit]
        documents += load_corpus(data / f"{name}_corpus.jsonl")
    if not parts[False] or not parts[True]:
        raise OptionError(f"expected questions to train on and held-out ones, got {[len(p) for p in parts.values()]}")
    cut = tuple(replace(document, text=shorten(document.text, codec, passage_tokens)) for document in documents)
    return RealText(tuple(parts[False]), tuple(parts[True]), cut)


def read_set(data: Path, name: str) -> list[Question]:
    """The questions of one set, in the order of its file, with the metadata that `load` describes."""
    return [
        replace(
            question,
            metadata={
                **question.metadata,
                "set": name,
                "kind": f"{name}/{question.metadata['kind']}" if question.metadata.get("kind") else name,
                "yes_no": any(normalize_answer(answer) in ("yes", "no") for answer in question.answers),
            },
        )
        for question in questions.load(f"jsonl:{data / name}.jsonl", "all")
    ]


def shorten(text: str, codec: TokenCodec, num_tokens: int) -> str:
    """The beginning of ``text`` that ``num_tokens`` tokens hold, up to its last whole word."""
    ids = codec.encode(text[: 16 * num_tokens])
    if len(ids) <= num_tokens:
        return text[: 16 * num_tokens]
    beginning = codec.decode(ids[:num_tokens]).rstrip("\ufffd")
    return beginning.rsplit(maxsplit=1)[0] if " " in beginning else beginning


def make_split(rows: Sequence[Question]) -> list[str]:
    """Ids of a third of ``rows``, of every kind and of yes/no questions alike, in the order of their ids' SHA-256."""
    strata: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for row in rows:
        strata[row.metadata["kind"], row.metadata["yes_no"]].append(row.question_id)
    chosen = []
    for ids in strata.values():
        ordered = sorted(ids, key=lambda question_id: hashlib.sha256(question_id.encode()).hexdigest())
        chosen += ordered[: round(HELD_OUT * len(ids))]
    return sorted(chosen)


def _present(data: Path) -> list[str]:
    names = [name for name in SETS if (data / f"{name}.jsonl").is_file()]
    if not names:
        raise OptionError(
            f"expected {', '.join(f'{name}.jsonl' for name in SETS)} in {data}, got none; do: name a folder with "
            "questions and passages in FlashRAG's layout (docs/data.md)"
        )
    return names


@dataclass(frozen=True)
class SplitConfig:
    """Choose held-out questions and record their ids."""

    data: Path
    """Folder with NAME.jsonl of each set."""
    output: Path = SPLIT
    """The file to write."""


def main(config: SplitConfig) -> None:
    """Write the split of the sets that are in the folder."""
    held_out = {name: make_split(read_set(config.data, name)) for name in _present(config.data)}
    about = (
        "ids of held-out questions: a third of each kind of each set, in the order of SHA-256; the rest is trained on"
    )
    write_json(config.output, {"about": about, "held_out": held_out})
    print({name: len(ids) for name, ids in held_out.items()})


if __name__ == "__main__":
    try:
        main(tyro.cli(SplitConfig, description=__doc__))
    except SearchGymError as error:
        sys.exit(f"error: {error}")
