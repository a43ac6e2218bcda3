"""Encoders: what turns queries and passages into vectors, and the record that lets an index find its own again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, get_args, runtime_checkable

import numpy as np

from search_gym import plugins
from search_gym.errors import IndexFileError, OptionError, RetrievalError
from search_gym.retrievers._models import (
    Compute,
    Floats,
    Model,
    Runtime,
    clean,
    find_runtime,
    load_model,
    local_folder,
    run_in_batches,
)
from search_gym.retrievers._presets import ENCODERS, Pooling

DEFAULT = "e5-base-v2"
_PROBE = ("Who wrote Walden?", '"Walden"\nA book by Henry David Thoreau about two years in the woods.')
_PROBE_SIZE = 8


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors (n, ``dimension``) of float32, whose inner product says how well two texts match.

    ``description`` is plain JSON: all that decides a vector. A vector depends on its text alone.
    """

    @property
    def dimension(self) -> int: ...

    @property
    def description(self) -> Mapping[str, Any]: ...

    def encode_queries(self, texts: Sequence[str]) -> Floats: ...

    def encode_passages(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True)
class Recipe:
    """How a model's encoder makes a vector of a text; see `_presets.EncoderPreset`."""

    model: str
    runtime: Runtime
    query_prefix: str
    passage_prefix: str
    pooling: Pooling
    normalize: bool
    max_length: int

    def __post_init__(self) -> None:
        wanted = (str, str, str, str, str, bool, int)
        if not all(isinstance(value, kind) for value, kind in zip(vars(self).values(), wanted, strict=True)):
            raise OptionError(f"expected an encoder's options of types {[t.__name__ for t in wanted]}, got {self}")
        if self.pooling not in get_args(Pooling) or self.runtime not in get_args(Runtime) or self.max_length < 8:
            raise OptionError(
                f"expected pooling {get_args(Pooling)}, runtime {get_args(Runtime)} and max_length >= 8, got "
                f"{self.pooling!r}, {self.runtime!r} and {self.max_length}; do: correct them"
            )


class ModelEncoder:
    """A transformer with the prefixes, the pooling and the normalisation of its ``recipe``."""

    def __init__(self, recipe: Recipe, model: Model, batch_size: int) -> None:
        self.recipe = recipe
        self._model = model
        self.batch_size = batch_size
        self.dimension = int(self.encode_queries([""]).shape[1])

    @property
    def description(self) -> dict[str, Any]:
        """The recipe."""
        return asdict(self.recipe)

    def encode_queries(self, texts: Sequence[str]) -> Floats:
        """Vectors (n, dimension)."""
        return self._encode(self.recipe.query_prefix, texts)

    def encode_passages(self, texts: Sequence[str]) -> Floats:
        """Vectors (n, dimension)."""
        return self._encode(self.recipe.passage_prefix, texts)

    def _encode(self, prefix: str, texts: Sequence[str]) -> Floats:
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        inputs = self._model.tokenize([clean(prefix + text) for text in texts], None, self.recipe.max_length)
        vectors = run_in_batches(
            self._model, inputs, self.batch_size, lambda batch: self._model.pooled(batch, self.recipe.pooling)
        )
        if self.recipe.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def load_encoder(
    name: str,
    *,
    compute: Compute,
    preset: str | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    runtime: Runtime | None = None,
) -> Encoder:
    """The encoder called ``name``: a preset, a directory, a name on the hub, or ``"package.module:attribute"``.

    What is not given is taken from the preset, else from sentence-transformers' files beside the model.

    Raises:
        OptionError: there is no such model, or something that decides its vectors is not known.
        UnknownNameError: no such attribute.
    """
    given = {
        "query_prefix": query_prefix,
        "passage_prefix": passage_prefix,
        "pooling": pooling,
        "normalize": normalize,
        "max_length": max_length,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if _is_custom(name):
        if given or preset or runtime:
            raise OptionError(f"expected no options of a model beside encoder={name!r}, got {sorted(given)}")
        return _load_custom(name)
    if preset is None and not Path(name).is_dir() and name in ENCODERS:
        preset = name
    if preset is not None and preset not in ENCODERS:
        raise OptionError(f"expected a preset among {sorted(ENCODERS)}, got {preset!r}; do: name one of them")
    model = ENCODERS[name].model if preset == name else name
    folder = local_folder(model, runtime)
    known = asdict(ENCODERS[preset]) if preset else _sentence_transformers(folder)
    settings = {**known, **given, "model": str(folder) if Path(model).is_dir() else model}
    settings["runtime"] = runtime or find_runtime(folder)
    missing = [key for key in Recipe.__dataclass_fields__ if key not in settings]
    if missing:
        raise OptionError(
            f"expected a preset ({', '.join(ENCODERS)}), a model of sentence-transformers, or all that decides a "
            f"vector; of {model!r} not known: {missing}; do: give them, or preset=NAME"
        )
    recipe = Recipe(**settings)
    return ModelEncoder(recipe, load_model(model, recipe.runtime, "encode", compute), compute.batch_size)


def _is_custom(name: str) -> bool:
    return ":" in name and not Path(name).is_dir()


def _load_custom(name: str) -> Encoder:
    encoder = plugins.find_outside(name)()
    if not isinstance(encoder, Encoder):
        raise OptionError(f"expected {name!r} to make an Encoder, got {type(encoder).__name__}; do: see docs/dense.md")
    return encoder


def _sentence_transformers(folder: Path) -> dict[str, Any]:
    """What sentence-transformers' files in ``folder`` say; nothing if there are none."""
    modules = _read(folder / "modules.json")
    if not modules:
        return {}
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise OptionError(
            f"expected modules Transformer, Pooling, Normalize in {folder}, got {kinds}; do: another model"
        )
    prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
    found = {
        "query_prefix": prompts.get("query", ""),
        "passage_prefix": prompts.get("passage", prompts.get("document", "")),
        "pooling": _pooling(_read(folder / modules[1]["path"] / "config.json"), folder),
        "normalize": "Normalize" in kinds,
        "max_length": _read(folder / "sentence_bert_config.json").get("max_seq_length")
        or _read(folder / "config.json").get("max_position_embeddings"),
    }
    return {key: value for key, value in found.items() if value is not None}


def _pooling(config: Mapping[str, Any], folder: Path) -> Pooling:
    """The older files have one flag per way, the newer ones its name."""
    ways = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    named = config.get("pooling_mode")
    for way, flag in ways.items():
        if named == way or chosen == [flag]:
            return cast(Pooling, way)
    raise OptionError(f"expected pooling cls or mean in {folder}, got {named or chosen}; do: another model")


def _read(path: Path) -> Any:
    """The JSON in ``path``, or an empty object."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise OptionError(f"expected JSON in {path}, got {error}; do: download the model again") from error


def encode(encoder: Encoder, what: str, texts: Sequence[str]) -> Floats:
    """Vectors (n, dimension) of ``texts``, which are "queries" or "passages", checked.

    Raises:
        RetrievalError: the encoder made something else, or numbers that are not finite.
    """
    vectors = encoder.encode_queries(texts) if what == "queries" else encoder.encode_passages(texts)
    shape = (len(texts), encoder.dimension)
    if not isinstance(vectors, np.ndarray) or vectors.shape != shape or not np.isfinite(vectors).all():
        got = f"{vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise RetrievalError(f"expected finite vectors {shape} of {what} from the encoder, got {got}; do: check it")
    return np.ascontiguousarray(vectors, dtype=np.float32)


def record(name: str, encoder: Encoder, precision: str) -> dict[str, Any]:
    """What an index keeps of its encoder: where it is, what decides its vectors, and some numbers of two vectors."""
    what = {"custom": name, "description": dict(encoder.description)} if _is_custom(name) else encoder.description
    probe = [round(number, 6) for number in _probe(encoder)]
    return {**json.loads(json.dumps(what)), "precision": precision, "dimension": encoder.dimension, "probe": probe}


def reopen(saved: Mapping[str, Any], name: str | None, compute: Compute) -> Encoder:
    """The encoder of a `record`; ``name`` says where it is now, if it has moved.

    Raises:
        IndexFileError: it makes other vectors than those of the record. OptionError: it cannot be loaded.
    """
    needed = {"custom", "description"} if "custom" in saved else set(Recipe.__dataclass_fields__)
    missing = sorted((needed | {"precision", "dimension", "probe"}) - saved.keys())
    if missing:
        raise IndexFileError(f"expected an encoder with all that decides a vector, got none of {missing}")
    if "custom" in saved:
        encoder = _load_custom(name or saved["custom"])
    else:
        recipe = Recipe(**{key: saved[key] for key in Recipe.__dataclass_fields__})
        moved = ENCODERS[name].model if name in ENCODERS and not Path(name).is_dir() else name
        recipe = replace(recipe, model=moved or recipe.model)
        encoder = ModelEncoder(recipe, load_model(recipe.model, recipe.runtime, "encode", compute), compute.batch_size)
    if not is_same(record(saved.get("custom", ""), encoder, compute.precision), saved):
        raise IndexFileError(
            f"expected the encoder that the index was built with ({saved.get('custom') or saved['model']}), got one "
            "that makes other vectors; do: name the right one with encoder=, or build the index anew"
        )
    return encoder


def is_same(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Whether two records are of encoders that make the same vectors, wherever their models are.

    The probes may differ by rounding: 0.1 %, or 3 % where either has fewer than 32 bits.
    """
    free = ("model", "probe", "precision")
    if {k: v for k, v in one.items() if k not in free} != {k: v for k, v in two.items() if k not in free}:
        return False
    tolerance = 1e-3 if one["precision"] == two["precision"] == "fp32" else 3e-2
    now, then = np.array(one["probe"]), np.array(two["probe"])
    return now.shape == then.shape and bool(np.linalg.norm(now - then) <= tolerance * np.linalg.norm(then) + 1e-5)


def _probe(encoder: Encoder) -> list[float]:
    """The first numbers of the vectors of a query and of a passage."""
    query, passage = encode(encoder, "queries", _PROBE[:1])[0], encode(encoder, "passages", _PROBE[1:])[0]
    return [*query[:_PROBE_SIZE].tolist(), *passage[:_PROBE_SIZE].tolist()]
