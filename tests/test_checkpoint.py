"""Policies and training states come back as they were saved, and nothing is lost when saving fails or is killed."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_models import WORDS, llama, tiny, tokenizer

from agents import checkpoint, directories, training_state
from agents.checkpoint import VALUE_HEAD_FILE, load_policy, save_policy
from agents.directories import replace_directory
from agents.models import CheckpointError, load_model
from agents.policy import CausalLMWithValueHead
from agents.training_state import TrainingState, drop_states, read_state, write_state
from search_gym import tinywiki
from search_gym.codec import HFCodec
from search_gym.errors import OptionError


def tiny_policy(seed=0):
    codec = tinywiki.codec()
    policy = CausalLMWithValueHead(tiny(codec.vocab_size), vocab_size=codec.vocab_size)
    torch.manual_seed(seed)
    torch.nn.init.normal_(policy.value_head.weight)
    return policy, codec


def llama_policy():
    codec = HFCodec(tokenizer())
    policy = CausalLMWithValueHead(llama(len(WORDS) + 3), vocab_size=codec.vocab_size)
    torch.nn.init.normal_(policy.value_head.bias)
    return policy, codec


def assert_same(policy, other):
    state, other_state = policy.state_dict(), other.state_dict()
    assert state.keys() == other_state.keys()
    for name, weight in state.items():
        assert torch.equal(weight, other_state[name]), name


@pytest.mark.parametrize("make", [tiny_policy, llama_policy])
def test_a_policy_comes_back(tmp_path, make):
    policy, codec = make()
    save_policy(tmp_path / "runs" / "checkpoint", policy, codec)
    loaded, loaded_codec = load_policy(tmp_path / "runs" / "checkpoint")
    assert_same(policy, loaded)
    assert loaded.vocab_size == codec.vocab_size == loaded_codec.vocab_size
    assert loaded_codec.decode([4, 5, 6]) == codec.decode([4, 5, 6])
    model, _ = load_model(tmp_path / "runs" / "checkpoint")
    assert_same(policy.model, model)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["checkpoint"]
    assert not [path for path in (tmp_path / "runs" / "checkpoint").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


def test_a_new_checkpoint_replaces_the_old_one(tmp_path):
    old, codec = tiny_policy(0)
    new, _ = tiny_policy(1)
    save_policy(tmp_path / "checkpoint", old, codec)
    save_policy(tmp_path / "checkpoint", new, codec)
    assert_same(load_policy(tmp_path / "checkpoint")[0], new)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old, codec = tiny_policy(0)
    save_policy(tmp_path / "checkpoint", old, codec)

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_policy(tmp_path / "checkpoint", tiny_policy(1)[0], codec)
    assert_same(load_policy(tmp_path / "checkpoint")[0], old)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_model_without_a_value_head_gets_one_of_zeros(tmp_path):
    policy, _ = tiny_policy()
    policy.model.save_pretrained(tmp_path)
    loaded, _ = load_policy(tmp_path)
    assert_same(loaded.model, policy.model)
    assert not any(weight.any() for weight in loaded.value_head.parameters())


class TestMisuse:
    def test_something_else_is_never_overwritten(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(CheckpointError, match="choose another"):
            save_policy(tmp_path, *tiny_policy())
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("width", [4, None])
    def test_a_value_head_that_does_not_fit(self, tmp_path, width):
        save_policy(tmp_path / "checkpoint", *tiny_policy())
        path = tmp_path / "checkpoint" / VALUE_HEAD_FILE
        if width is None:
            path.write_bytes(b"not safetensors")
        else:
            save_file({"weight": torch.zeros(1, width), "bias": torch.zeros(1)}, path)
        with pytest.raises(CheckpointError, match="width 16"):
            load_policy(tmp_path / "checkpoint")


def simple_state(update: int) -> TrainingState:
    return TrainingState(update, {"weights": torch.full((5,), float(update))}, {"seen": update})


def state_names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "states").iterdir())


FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def assert_same_json(one, other):
    """Equal with the types of all numbers, with signs of zeros, and with NaN equal to NaN."""
    assert type(one) is type(other)
    if isinstance(one, float):
        assert math.isnan(one) == math.isnan(other)
        assert math.isnan(one) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same_json(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_json(one[key], other[key])
    else:
        assert one == other


class TestStates:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (2, 3, 4)], ids=str)
    def test_every_bit_of_a_tensor_comes_back(self, tmp_path, dtype, shape):
        size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
        highest = 2 if dtype == torch.bool else 256
        stored = torch.randint(highest, (size,), dtype=torch.uint8).view(dtype).view(shape)
        write_state(tmp_path, TrainingState(1, {"x": stored}, {}))
        found = read_state(tmp_path).tensors["x"]
        assert (found.dtype, found.shape) == (dtype, shape)
        assert torch.equal(found.reshape(-1).view(torch.uint8), stored.reshape(-1).view(torch.uint8))

    def test_tensors_that_share_memory_come_back_on_their_own(self, tmp_path):
        whole = torch.arange(12.0).view(3, 4)
        tensors = {"whole": whole, "same": whole, "row": whole[1], "transposed": whole.T, "gradient": whole * 1}
        tensors["gradient"].requires_grad_()
        write_state(tmp_path, TrainingState(1, tensors, {}))
        found = read_state(tmp_path).tensors
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
        found["whole"].zero_()
        assert torch.equal(found["same"], whole)

    def test_conjugate_views_come_back_as_what_they_show(self, tmp_path):
        shown = torch.tensor([1 + 2j, 3 - 4j]).conj()
        write_state(tmp_path, TrainingState(1, {"x": shown}, {}))
        assert torch.equal(read_state(tmp_path).tensors["x"], torch.tensor([1 - 2j, 3 + 4j]))

    @settings(max_examples=50)
    @given(data=st.dictionaries(st.text(), JSON_VALUES, max_size=4))
    def test_json_comes_back_exactly(self, tmp_path_factory, data):
        run_dir = tmp_path_factory.mktemp("run")
        write_state(run_dir, TrainingState(1, {}, data))
        assert_same_json(read_state(run_dir).data, data)

    def test_generators_go_on_where_they_were(self, tmp_path):
        torch_generator, rng, plain = torch.Generator().manual_seed(1), np.random.default_rng(2), random.Random(3)
        torch.rand(5, generator=torch_generator), rng.random(5), plain.gauss(0, 1)
        data = {"numpy": rng.bit_generator.state, "python": plain.getstate()}
        write_state(tmp_path, TrainingState(1, {"torch": torch_generator.get_state()}, data))
        expected = (torch.rand(5, generator=torch_generator).tolist(), rng.random(5).tolist(), plain.gauss(0, 1))

        found = read_state(tmp_path)
        version, inner, gauss = found.data["python"]
        new_torch, new_rng, new_plain = torch.Generator(), np.random.default_rng(), random.Random()
        new_torch.set_state(found.tensors["torch"])
        new_rng.bit_generator.state = found.data["numpy"]
        new_plain.setstate((version, tuple(inner), gauss))
        assert (
            torch.rand(5, generator=new_torch).tolist(),
            new_rng.random(5).tolist(),
            new_plain.gauss(0, 1),
        ) == expected

    def test_the_newest_is_read_and_older_ones_go(self, tmp_path):
        assert read_state(tmp_path) is None
        assert write_state(tmp_path, simple_state(9)) == tmp_path / "states" / "update-000009"
        for update in (10, 99, 1_000_000):
            write_state(tmp_path, simple_state(update), keep=2)
        assert state_names(tmp_path) == ["update-000099", "update-1000000"]
        assert read_state(tmp_path).update == 1_000_000
        assert read_state(tmp_path, at_most=999_999).update == 99
        assert read_state(tmp_path, at_most=98) is None
        write_state(tmp_path, simple_state(1_000_001))
        assert state_names(tmp_path) == ["update-1000001"]

    def test_a_run_that_goes_back_does_not_find_what_it_gave_up(self, tmp_path):
        for update in (10, 20, 30):
            write_state(tmp_path, simple_state(update), keep=3)
        drop_states(tmp_path, after=10)
        assert state_names(tmp_path) == ["update-000010"]
        for update in (20, 30):
            write_state(tmp_path, simple_state(update), keep=3)
        write_state(tmp_path, simple_state(15), keep=3)
        assert state_names(tmp_path) == ["update-000010", "update-000015"]

    def test_a_state_replaces_one_of_the_same_update(self, tmp_path):
        write_state(tmp_path, simple_state(3))
        write_state(tmp_path, TrainingState(3, {}, {"seen": "again"}))
        assert read_state(tmp_path).data == {"seen": "again"}
        assert read_state(tmp_path).tensors == {}

    def test_nothing_in_a_state_is_pickled(self, tmp_path):
        directory = write_state(tmp_path, simple_state(1))
        assert sorted(path.name for path in directory.iterdir()) == ["state.json", "state.safetensors"]

        def refuse(constant):
            raise AssertionError(f"{constant} is not strict JSON")

        write_state(tmp_path, TrainingState(1, {}, {"x": [math.inf, -math.inf, math.nan]}))
        json.loads((directory / "state.json").read_text(), parse_constant=refuse)


class TestDamage:
    """What is found when a stored state is not what was written."""

    @pytest.fixture
    def directory(self, tmp_path):
        return write_state(tmp_path, TrainingState(7, {"x": torch.arange(6.0)}, {"order": [3, 1, 2], "rate": 0.1}))

    def test_a_flipped_bit_is_never_read(self, directory):
        """In each file one bit of every byte is flipped, in a different place of the byte each time."""
        for name in ("state.json", "state.safetensors"):
            path = directory / name
            content = path.read_bytes()
            for i in range(len(content)):
                damaged = bytearray(content)
                damaged[i] ^= 1 << i % 8
                path.write_bytes(damaged)
                with pytest.raises(CheckpointError, match=name):
                    read_state(directory.parents[1])
            path.write_bytes(content)
        assert read_state(directory.parents[1]).data == {"order": [3, 1, 2], "rate": 0.1}

    @pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
    @pytest.mark.parametrize("kept", [0, 1, 50, -1])
    def test_a_cut_file_is_named(self, directory, name, kept):
        path = directory / name
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(CheckpointError, match=f"{name}.*start again"):
            read_state(directory.parents[1])

    @pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
    def test_a_missing_file_is_named_and_the_way_back_shown(self, directory, name):
        run_dir = directory.parents[1]
        newest = write_state(run_dir, simple_state(8), keep=2)
        (newest / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name}.*to go on from update 7"):
            read_state(run_dir)
        shutil.rmtree(newest)
        assert read_state(run_dir).update == 7

    def test_another_format_is_named_with_the_version_that_wrote_it(self, directory):
        path = directory / "state.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "format": 99, "search_gym": "9.9"}))
        with pytest.raises(CheckpointError, match=r"of format 1 .* got format 99 of search-gym 9\.9"):
            read_state(directory.parents[1])

    @pytest.mark.parametrize("content", ["[]", "null", "{}", '{"sha256": 1}', "\ud800"])
    def test_other_json_is_refused(self, directory, content):
        (directory / "state.json").write_text(content, errors="surrogatepass")
        with pytest.raises(CheckpointError, match=r"state\.json"):
            read_state(directory.parents[1])


class TestCrashes:
    @pytest.mark.parametrize(
        "scenarios",
        [
            ["same-state+renames", "policy", "random"],
            pytest.param(
                ["next-state", "next-state-of-two", "aside", "same-state", "policy+renames"], marks=pytest.mark.slow
            ),
        ],
        ids=["some", "others"],
    )
    def test_what_was_acknowledged_survives_every_kill(self, tmp_path, scenarios):
        """See crashes.py; the number of kills says that there were steps to be killed at."""
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("crashes.py")), str(tmp_path), *scenarios],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == len(scenarios)
        assert min(map(int, done.stdout.split())) > 20

    def test_two_directories_change_places_in_one_step(self, tmp_path):
        if sys.platform != "linux":
            pytest.skip("only Linux can exchange directories")
        one, other = tmp_path / "one", tmp_path / "other"
        for directory in (one, other):
            directory.mkdir()
            (directory / "name").write_text(directory.name)
        if not directories._exchange(one, other):
            pytest.skip("this file system cannot exchange directories")
        assert (one / "name").read_text() == "other"
        assert (other / "name").read_text() == "one"
        with pytest.raises(FileNotFoundError):
            directories._exchange(one, tmp_path / "nowhere")

    @pytest.mark.parametrize("can_exchange", [True, False])
    def test_a_directory_takes_the_place_of_another(self, tmp_path, monkeypatch, can_exchange):
        if not can_exchange:
            monkeypatch.setattr(directories, "_exchange", lambda one, other: False)
        for content in ("first", "second"):
            new = tmp_path / "new"
            new.mkdir()
            (new / content).touch()
            replace_directory(new, tmp_path / "target")
            assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["target", f"target/{content}"]

    def test_a_policy_that_was_put_aside_is_found(self, tmp_path):
        policy, codec = tiny_policy()
        save_policy(tmp_path / "checkpoint", policy, codec)
        (tmp_path / "checkpoint").rename(tmp_path / ".checkpoint.old")
        assert_same(load_policy(tmp_path / "checkpoint")[0], policy)

    def test_a_write_that_fails_leaves_the_old_state(self, tmp_path, monkeypatch):
        write_state(tmp_path, simple_state(1))

        def full_disk(*_):
            raise training_state.SafetensorError("No space left on device")

        monkeypatch.setattr(training_state, "save_file", full_disk)
        with pytest.raises(CheckpointError, match="No space left"):
            write_state(tmp_path, simple_state(2))
        assert state_names(tmp_path) == ["update-000001"]
        assert read_state(tmp_path).update == 1


class TestStatesThatCannotBeStored:
    @pytest.mark.parametrize(
        ("value", "where"),
        [
            ({"a": [1, {"b": np.zeros(2)}]}, r"data\['a'\]\[1\]\['b'\]"),
            ({"a": {1: "x"}}, r"data\['a'\]"),
            ({"a": {"$float": "x"}}, r"data\['a'\]"),
            ({"a": {1, 2}}, r"set"),
            ({"a": np.int64(1)}, "int64"),
        ],
    )
    def test_data_that_json_would_change_is_refused(self, tmp_path, value, where):
        with pytest.raises(CheckpointError, match=where):
            write_state(tmp_path, TrainingState(1, {}, value))
        assert read_state(tmp_path) is None

    @pytest.mark.parametrize(
        ("name", "tensor"),
        [
            ("sparse", torch.eye(3).to_sparse()),
            ("nowhere", torch.empty(2, device="meta")),
            ("__metadata__", torch.zeros(1)),
        ],
    )
    def test_tensors_that_are_not_dense_are_refused(self, tmp_path, name, tensor):
        with pytest.raises(CheckpointError, match=name):
            write_state(tmp_path, TrainingState(1, {name: tensor}, {}))
        assert read_state(tmp_path) is None

    def test_keeping_nothing_is_refused(self, tmp_path):
        with pytest.raises(OptionError, match="keep"):
            write_state(tmp_path, simple_state(1), keep=0)
