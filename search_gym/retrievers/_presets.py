"""What each family of encoders and cross-encoders was trained with, by the name of the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class EncoderPreset:
    """How a text becomes a vector: a prefix, at most ``max_length`` tokens, pooling of the last layer, length 1."""

    model: str
    query_prefix: str
    passage_prefix: str
    pooling: Pooling
    normalize: bool
    max_length: int


@dataclass(frozen=True)
class CrossEncoderPreset:
    """A model that reads a query and a passage together, at most ``max_length`` tokens of them."""

    model: str
    max_length: int


def _family(preset: EncoderPreset, names: str) -> dict[str, EncoderPreset]:
    return {name: dataclasses.replace(preset, model=preset.model + name) for name in names.split()}


# Wang et al. 2022, arXiv 2212.03533, and its multilingual successor, arXiv 2402.05672.
_E5 = EncoderPreset("intfloat/", "query: ", "passage: ", "mean", True, 512)
# Xiao et al. 2023, arXiv 2309.07597: only queries have an instruction.
_BGE = EncoderPreset("BAAI/", "Represent this sentence for searching relevant passages: ", "", "cls", True, 512)
# Li et al. 2023, arXiv 2308.03281.
_GTE = EncoderPreset("thenlper/", "", "", "mean", True, 512)
# Wang et al. 2020, arXiv 2002.10957, trained on a billion pairs.
_MINILM = EncoderPreset("sentence-transformers/", "", "", "mean", True, 256)

ENCODERS: dict[str, EncoderPreset] = {
    **_family(_E5, "e5-small-v2 e5-base-v2 e5-large-v2 e5-small e5-base e5-large"),
    **_family(_E5, "multilingual-e5-small multilingual-e5-base multilingual-e5-large"),
    **_family(_BGE, "bge-small-en-v1.5 bge-base-en-v1.5 bge-large-en-v1.5"),
    **_family(_GTE, "gte-small gte-base gte-large"),
    **_family(_MINILM, "all-MiniLM-L6-v2"),
    **_family(dataclasses.replace(_MINILM, max_length=128), "all-MiniLM-L12-v2"),
    **_family(dataclasses.replace(_MINILM, max_length=512), "multi-qa-MiniLM-L6-cos-v1"),
}
CROSS_ENCODERS: dict[str, CrossEncoderPreset] = {
    name: CrossEncoderPreset(f"{owner}/{name}", 512)
    for owner, names in (
        (
            "cross-encoder",
            "ms-marco-MiniLM-L-2-v2 ms-marco-MiniLM-L-4-v2 ms-marco-MiniLM-L-6-v2 ms-marco-MiniLM-L-12-v2",
        ),
        ("BAAI", "bge-reranker-base bge-reranker-large bge-reranker-v2-m3"),
    )
    for name in names.split()
}
