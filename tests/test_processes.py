"""Several processes, launched by accelerate, train what one process trains, whether or not they share the weights out.

Each computes half of every mini-batch. Float32 sums in another order differ by some 1e-7 of their size; a few optimiser
steps and the exponentials in the losses make that 1e-5, and the tolerance is 1e-4. A step that is not the same differs
by more: Adam's first ones move every weight by the learning rate, 1e-3 for the policy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_models
from safetensors.torch import load_file

from agents import algorithms
from agents.launch import start_missing_processes
from search_gym.errors import OptionError

ROOT = Path(__file__).parents[1]
QUIET = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
FSDP = ("--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", "0", *QUIET)


def options(run_dir: Path, *more: str) -> list[str]:
    sizes = ("--rollouts-per-update", "16", "--minibatch-size", "8", "--micro-batch-size", "4", "--group-size", "4")
    common = ("--updates", "3", "--save-every", "1", "--device", "cpu", "--env.reward", "format")
    return [*sizes, *common, "--run-dir", str(run_dir), *more]


def launch(*command: str) -> str:
    """What ``accelerate launch`` with this command writes to stdout and stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def rows(run_dir: Path) -> list[dict[str, float]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if not key.startswith("time/")} for line in lines]


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert not any("alarms" in row for row in rows(expected))
    for row, other in zip(rows(run_dir), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)
    for path in (*expected.glob("checkpoint/*.safetensors"), *expected.glob("states/*/*.safetensors")):
        found, tensors = load_file(run_dir / path.relative_to(expected)), load_file(path)
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].sub(tensor).abs().max() < 1e-4, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    algorithms.load("ppo").main(options(run_dir))
    assert rows(run_dir)[0]["loss/grad_norm"] > 0.01
    return run_dir


def test_two_cpu_processes_make_the_updates_of_one(alone: Path, tmp_path: Path) -> None:
    launch("--num_processes", "2", "--cpu", "-m", "agents.ppo", *options(tmp_path / "two"))
    assert_same_run(tmp_path / "two", alone)
    assert rows(tmp_path / "two") != rows(alone)  # bit-identical sums would mean that there was one process


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("--num_processes", "2", "--cpu"), FSDP], ids=["ddp", "fsdp"])
def test_two_processes_that_share_prompts_make_the_updates_of_one(launcher: tuple[str, ...], tmp_path: Path) -> None:
    words = small_models.tokenizer()
    small_models.llama(len(words)).save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    turns = ("--env.max-turns", "0", "--env.max-turn-tokens", "4")  # after prompts of a dozen tokens
    sizes = ("--minibatch-size", "16", "--micro-batch-size", "8")
    more = ("--model", str(tmp_path / "model"), "--entropy-coef", "0.01", *turns, *sizes)
    for run_dir, shares in (("one", "--no-share-prompts"), ("shared", "--share-prompts")):
        algorithms.load("grpo").main(options(tmp_path / run_dir, *more, shares))
    launch(*launcher, "-m", "agents.grpo", *options(tmp_path / "two", *more))
    assert rows(tmp_path / "shared") != rows(tmp_path / "one")  # bit-identical sums would mean that nothing was shared
    assert_same_run(tmp_path / "shared", tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "one")


def test_processes_that_share_the_weights_out_make_the_updates_of_one(alone: Path, tmp_path: Path) -> None:
    """They stop after two updates; any number of processes goes on from what they saved."""
    script = str(ROOT / "tests" / "sharded_run.py")
    launch(*FSDP, script, "ppo", "2", *options(tmp_path / "two"))
    assert len(rows(tmp_path / "two")) == 2
    (tmp_path / "one").mkdir()
    for path in (tmp_path / "two").rglob("*"):
        if path.is_file():
            copy = tmp_path / "one" / path.relative_to(tmp_path / "two")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    algorithms.load("ppo").main(options(tmp_path / "one", "--resume"))
    assert_same_run(tmp_path / "one", alone)
    launch(*FSDP, script, "ppo", "3", *options(tmp_path / "two", "--resume"))
    assert_same_run(tmp_path / "two", alone)
    assert rows(tmp_path / "two") != rows(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [("grpo", ["--lora-rank", "2"]), ("dapo", []), ("ppo", ["--value.critic", "separate", "--epochs", "2"])],
    ids=["lora", "dapo", "critic"],
)
def test_shared_out_whatever_is_trained(name: str, more: list[str], tmp_path: Path) -> None:
    algorithms.load(name).main(options(tmp_path / "one", *more))
    launch(*FSDP, "-m", f"agents.{name}", *options(tmp_path / "two", *more))
    assert_same_run(tmp_path / "two", tmp_path / "one")
    assert rows(tmp_path / "two") != rows(tmp_path / "one")


def test_the_first_version_of_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "NO_WRAP")
    with pytest.raises(SystemExit, match="expected FSDP version 2, got 1; do: launch with --fsdp_version 2"):
        algorithms.load("ppo").main(options(tmp_path))


def test_what_one_process_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent here is no launcher, so nothing is started; with one that names no number there is an error."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    start_missing_processes("agents.ppo", [])
    command = ["python", "bin/accelerate", "launch", "--cpu", "-m", "agents.ppo"]
    monkeypatch.setattr("psutil.Process.cmdline", lambda process: command)
    with pytest.raises(OptionError, match=r"got num_processes=None.*do: launch with --multi_gpu in place of --cpu"):
        start_missing_processes("agents.ppo", [])
