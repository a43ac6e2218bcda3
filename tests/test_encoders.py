"""Encoders against one text at a time, written out; prefixes, pooling and normalisation; ONNX beside torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from search_gym.errors import OptionError, RetrievalError, UnknownNameError
from search_gym.retrievers._encoders import Encoder, ModelEncoder, encode, load_encoder
from search_gym.retrievers._models import Compute, clean, load_model, run_in_batches
from search_gym.retrievers._onnx_models import quantizes_as_it_runs
from search_gym.retrievers._presets import CROSS_ENCODERS, ENCODERS
from tests.encoder_models import DIMENSION, LENGTH, HashingEncoder, export, write_cross_encoder, write_encoder

ROOT = Path(__file__).parents[1]
TEXTS = st.lists(st.text(alphabet="abc xyz.\né運\ud800", max_size=40), min_size=1, max_size=9)
SAMPLE = ["who was born in Kanor?", "", "juden plard " * 40, "the harbour of the town", "x", "運河"]
EXPLICIT = {"query_prefix": "q: ", "passage_prefix": "p: ", "pooling": "cls", "normalize": False, "max_length": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that the tests do not change."""
    path = tmp_path_factory.mktemp("models")
    write_encoder(path / "plain", is_described=False)
    for pooling in ("mean", "cls"):
        for normalize in (True, False):
            write_encoder(path / f"{pooling}{normalize}", pooling=pooling, normalize=normalize)
    write_cross_encoder(path / "cross")
    for name in ("plain", "cross"):
        export(path / name, path / f"{name}-onnx")
        export(path / name, path / f"{name}-int8", is_int8=True)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load(folder / "meanTrue")


def load(path: Path | str, batch_size: int = 4, **options: object) -> Encoder:
    return load_encoder(str(path), compute=Compute(batch_size=batch_size), **options)


def reference(path: Path, texts: list[str], pooling: str, normalize: bool) -> np.ndarray:
    """One text at a time, without padding; means and norms written out."""
    model, tokenizer = AutoModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    vectors = []
    for text in texts:
        ids = tokenizer(text.encode("utf-8", "ignore").decode(), truncation=True, max_length=LENGTH)["input_ids"]
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0].tolist()
        vector = hidden[0] if pooling == "cls" else [sum(column) / len(hidden) for column in zip(*hidden, strict=True)]
        norm = sum(number * number for number in vector) ** 0.5 if normalize else 1.0
        vectors.append([number / norm for number in vector])
    return np.array(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_encoder_equals_one_text_at_a_time(folder: Path, pooling: str, normalize: bool) -> None:
    path = folder / f"{pooling}{normalize}"
    vectors = load(path).encode_passages(SAMPLE)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference(path, SAMPLE, pooling, normalize), atol=3e-6)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


@settings(max_examples=20)
@given(texts=TEXTS, batch_size=st.integers(1, 10))
def test_a_vector_depends_on_its_text_alone(encoder: ModelEncoder, texts: list[str], batch_size: int) -> None:
    encoder.batch_size = batch_size
    together = encoder.encode_queries(texts)
    assert together.shape == (len(texts), DIMENSION)
    alone = np.concatenate([encoder.encode_queries([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(texts[::-1])[::-1], together, atol=1e-6)


def test_prefixes_are_those_of_queries_and_of_passages(folder: Path, tmp_path: Path) -> None:
    plain = load(folder / "meanTrue")
    prompts = {"query": "query: ", "passage": "passage: "}
    prompted = load(write_encoder(tmp_path / "prompted", prompts=prompts))
    assert prompted.description["query_prefix"] == "query: "
    np.testing.assert_array_equal(
        prompted.encode_queries(SAMPLE), plain.encode_queries([f"query: {text}" for text in SAMPLE])
    )
    np.testing.assert_array_equal(
        prompted.encode_passages(SAMPLE), plain.encode_passages([f"passage: {text}" for text in SAMPLE])
    )
    other = load(folder / "meanTrue", query_prefix="Q", passage_prefix="")
    assert (other.description["query_prefix"], other.description["passage_prefix"]) == ("Q", "")


def test_no_texts_make_no_vectors(folder: Path) -> None:
    assert load(folder / "meanTrue").encode_queries([]).shape == (0, DIMENSION)


@pytest.mark.parametrize(("text", "expected"), [("a\ud800b", "a�b"), ("\ud83d\ude00", "😀"), ("é\x00", "é\x00")])
def test_a_surrogate_without_a_partner_is_replaced(text: str, expected: str) -> None:
    assert clean(text) == expected


# What decides a vector


def test_sentence_transformers_files_say_how(folder: Path) -> None:
    description = load(folder / "clsFalse").description
    assert description == {
        "model": str(folder / "clsFalse"),
        "runtime": "torch",
        "query_prefix": "",
        "passage_prefix": "",
        "pooling": "cls",
        "normalize": False,
        "max_length": LENGTH,
    }
    assert json.loads(json.dumps(description)) == description


def test_the_newer_form_of_the_pooling_file_is_read(tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "model")
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    (path / "sentence_bert_config.json").unlink()
    description = load(path).description
    assert (description["pooling"], description["max_length"]) == ("cls", LENGTH)


def test_a_model_without_files_needs_every_option(folder: Path) -> None:
    for left_out in EXPLICIT:
        options = {key: value for key, value in EXPLICIT.items() if key != left_out}
        with pytest.raises(OptionError, match=rf"not known: \['{left_out}'\]"):
            load(folder / "plain", **options)
    assert load(folder / "plain", **EXPLICIT).description.items() >= EXPLICIT.items()


def test_a_preset_describes_a_directory(folder: Path) -> None:
    encoder = load(folder / "plain", preset="bge-small-en-v1.5", max_length=16)
    preset = ENCODERS["bge-small-en-v1.5"]
    assert encoder.description["query_prefix"] == preset.query_prefix
    assert (encoder.description["pooling"], encoder.description["max_length"]) == ("cls", 16)
    assert encoder.description["model"] == str(folder / "plain")


def test_presets_are_what_the_models_were_trained_with() -> None:
    for size in ("small", "base", "large"):
        e5, bge, gte = ENCODERS[f"e5-{size}-v2"], ENCODERS[f"bge-{size}-en-v1.5"], ENCODERS[f"gte-{size}"]
        assert (e5.model, e5.query_prefix, e5.passage_prefix) == (f"intfloat/e5-{size}-v2", "query: ", "passage: ")
        assert (bge.model, bge.passage_prefix, bge.pooling) == (f"BAAI/bge-{size}-en-v1.5", "", "cls")
        assert bge.query_prefix == "Represent this sentence for searching relevant passages: "
        assert (gte.model, gte.query_prefix + gte.passage_prefix, gte.pooling) == (f"thenlper/gte-{size}", "", "mean")
    assert ENCODERS["all-MiniLM-L6-v2"].model == "sentence-transformers/all-MiniLM-L6-v2"
    assert all(preset.model.endswith(f"/{name}") for name, preset in {**ENCODERS, **CROSS_ENCODERS}.items())


def encoder_rows() -> list[str]:
    """The rows of the page's first table."""
    return [
        f"| `{name}` | {preset.model} | {f'`{preset.query_prefix}`' if preset.query_prefix else ''} | "
        f"{f'`{preset.passage_prefix}`' if preset.passage_prefix else ''} | {preset.pooling} | {preset.max_length} |"
        for name, preset in ENCODERS.items()
    ]


def cross_encoder_rows() -> list[str]:
    return [f"| `{name}` | {preset.model} | {preset.max_length} |" for name, preset in CROSS_ENCODERS.items()]


@pytest.mark.parametrize(("table", "rows"), [("encoders", encoder_rows()), ("cross-encoders", cross_encoder_rows())])
def test_the_page_lists_the_presets(table: str, rows: list[str]) -> None:
    page = (ROOT / "docs" / "dense.md").read_text(encoding="utf-8")
    (inside,) = re.findall(rf"<!-- {table}:begin -->\n(.*?)<!-- {table}:end -->", page, flags=re.DOTALL)
    assert inside.splitlines()[2:] == rows
    assert all(preset.normalize for preset in ENCODERS.values()), "the page says so"


def test_a_name_on_the_hub_is_found_in_its_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(folder / "meanTrue", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = load("someone/tiny")
    assert encoder.description["model"] == "someone/tiny"
    np.testing.assert_array_equal(encoder.encode_queries(SAMPLE), load(folder / "meanTrue").encode_queries(SAMPLE))
    for name in ("someone/else", "no/such/name", "/no/such/folder"):
        with pytest.raises(OptionError, match="expected a model's directory or its name"):
            load(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "e6"}, "expected a preset among"),
        ({"pooling": "max"}, "expected pooling"),
        ({"max_length": 2}, "max_length >= 8"),
        ({"runtime": "tensorflow"}, "runtime"),
        ({"runtime": "onnx"}, "expected model.onnx"),
        ({"normalize": "yes"}, "types"),
    ],
)
def test_options_out_of_range_are_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load(folder / "meanTrue", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int8"},
        {"precision": "fp16", "device": "cpu"},
        {"device": "abacus"},
        {"batch_size": 0},
        {"threads": 0},
    ],
)
def test_what_the_machine_cannot_do_is_refused(folder: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="expected"):
        load_encoder(str(folder / "meanTrue"), compute=Compute(**options))


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    maximal = write_encoder(tmp_path / "max", pooling="max")
    with pytest.raises(OptionError, match="expected pooling cls or mean"):
        load(maximal)
    modules = json.loads((maximal / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (maximal / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(OptionError, match="expected modules"):
        load(maximal)
    (maximal / "modules.json").write_text("{")
    with pytest.raises(OptionError, match="expected JSON"):
        load(maximal)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OptionError, match="expected a model in"):
        load(tmp_path / "empty", **EXPLICIT)


def test_bf16_is_near(folder: Path) -> None:
    exact = load(folder / "meanTrue").encode_queries(SAMPLE)
    near = load_encoder(str(folder / "meanTrue"), compute=Compute(precision="bf16")).encode_queries(SAMPLE)
    assert 1e-5 < np.abs(exact - near).max() < 0.1
    assert near.dtype == np.float32


# ONNX


def test_onnx_equals_torch(folder: Path) -> None:
    one, two = (load(folder / name, **EXPLICIT) for name in ("plain", "plain-onnx"))
    assert two.description["runtime"] == "onnx"
    np.testing.assert_allclose(one.encode_queries(SAMPLE), two.encode_queries(SAMPLE), atol=1e-5)
    mean = {**EXPLICIT, "pooling": "mean", "normalize": True}
    one, two = (load(folder / name, **mean) for name in ("plain", "plain-onnx"))
    np.testing.assert_allclose(one.encode_passages(SAMPLE), two.encode_passages(SAMPLE), atol=1e-5)


def test_logits_equal_one_pair_at_a_time(folder: Path) -> None:
    reference_model = AutoModelForSequenceClassification.from_pretrained(folder / "cross").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "cross")
    queries, passages = SAMPLE, SAMPLE[::-1]
    expected = []
    for query, passage in zip(queries, passages, strict=True):
        inputs = tokenizer([query], [passage], truncation=True, max_length=LENGTH, return_tensors="pt")
        with torch.no_grad():
            expected.append(reference_model(**inputs).logits[0].tolist())
    for name in ("cross", "cross-onnx"):
        model = load_model(str(folder / name), None, "score", Compute())
        logits = run_in_batches(model, model.tokenize(queries, passages, LENGTH), 4, model.logits)
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_int8_models_are_asked_one_text_at_a_time(folder: Path) -> None:
    assert quantizes_as_it_runs(folder / "plain-int8" / "model.onnx")
    assert not quantizes_as_it_runs(folder / "plain-onnx" / "model.onnx")
    encoder = load(folder / "plain-int8", **EXPLICIT)
    alone = np.concatenate([encoder.encode_queries([text]) for text in SAMPLE])
    np.testing.assert_array_equal(encoder.encode_queries(SAMPLE), alone)
    # In one batch the scale of the activations is that of all texts, which is no rounding of float32.
    model = load_model(str(folder / "plain-int8"), None, "encode", Compute())
    inputs = model.tokenize([f"q: {text}" for text in SAMPLE], None, 32)
    model.is_batch_dependent = False
    together = run_in_batches(model, inputs, len(SAMPLE), lambda batch: model.pooled(batch, "cls"))
    assert np.abs(together - alone).max() > 1e-3


def test_an_onnx_model_is_used_for_what_it_is(folder: Path) -> None:
    with pytest.raises(OptionError, match="expected a last layer"):
        load(folder / "cross-onnx", **EXPLICIT)
    with pytest.raises(OptionError, match="expected no precision"):
        load_encoder(str(folder / "plain-onnx"), compute=Compute(precision="bf16"), **EXPLICIT)
    with pytest.raises(OptionError, match="onnxruntime has"):
        load_encoder(str(folder / "plain-onnx"), compute=Compute(device="tpu"), **EXPLICIT)


def test_a_damaged_onnx_model_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "plain-onnx" / "tokenizer.json", tmp_path)
    (tmp_path / "model.onnx").write_bytes((folder / "plain-onnx" / "model.onnx").read_bytes()[:1000])
    with pytest.raises(OptionError, match=r"expected tokenizer\.json and a model"):
        load(tmp_path, **EXPLICIT)


@pytest.mark.slow
def test_onnx_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys; from search_gym.retrievers._encoders import *\n"
        f"encoder = load_encoder({str(folder / 'plain-onnx')!r}, compute=Compute(), **{EXPLICIT!r})\n"
        "assert encoder.encode_queries(['a']).shape[0] == 1\n"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# Encoders from outside


def test_an_encoder_from_outside_is_called_by_its_name() -> None:
    encoder = load("tests.encoder_models:hashing")
    assert isinstance(encoder, HashingEncoder)
    with pytest.raises(OptionError, match="expected no options of a model"):
        load("tests.encoder_models:hashing", query_prefix="q")
    with pytest.raises(OptionError, match="to make an Encoder, got object"):
        load("tests.encoder_models:no_encoder")
    with pytest.raises(UnknownNameError, match="nothing"):
        load("tests.encoder_models:nothing")


def test_vectors_that_are_not_finite_are_an_error() -> None:
    encoder = load("tests.encoder_models:broken")
    assert encode(encoder, "queries", ["a"]).shape == (1, 16)
    with pytest.raises(RetrievalError, match="expected finite vectors"):
        encode(encoder, "queries", ["a", "nan"])


class _WrongShape(HashingEncoder):
    def encode_passages(self, texts):  # type: ignore[override]
        return np.zeros((len(texts), 3), dtype=np.float32)


def test_vectors_of_another_shape_are_an_error() -> None:
    with pytest.raises(RetrievalError, match=r"expected finite vectors \(1, 16\) of passages"):
        encode(_WrongShape(), "passages", ["a"])
