"""The options that every algorithm has, and the command line that they share."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from transformers.utils.logging import disable_progress_bar

from agents.generation import Engine
from agents.health import HealthConfig
from agents.launch import is_main_process, start_missing_processes
from agents.tasks import EnvConfig
from search_gym.errors import OptionError, SearchGymError, UnknownNameError


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, with a learning rate that rises linearly and then falls linearly."""

    learning_rate: float = 1e-3
    """Peak for the language model."""
    value_learning_rate: float = 1e-2
    """Peak for the value head, which starts from nothing, and for a separate critic."""
    warmup_updates: int = 5
    """Updates over which the rates rise from 0."""
    value_warmup_updates: int | None = None
    """The same for the value head; by default as many."""
    final_fraction: float = 0.3
    """Part of the peak that is left at the last update."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; those of a separate critic by themselves."""
    weight_decay: float = 0.0
    """AdamW's (Loshchilov and Hutter 2017, arXiv 1711.05101); 0 is Adam."""
    epsilon: float = 1e-5
    """Added to Adam's denominator."""


@dataclass(frozen=True)
class ComputeConfig:
    """Where and in what pieces the work is done. Nothing here changes what is learned, except for rounding and LoRA."""

    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""
    threads: int = 1
    """Torch's CPU threads; for the tiny model one is as fast as two."""
    num_envs: int | None = None
    """Episodes that a process plays at the same time; by default all of its share of a round."""
    engine: Engine = "auto"
    """What samples: the fast engine for models that it knows, the simple one for every model, or, experimental, vLLM
    (docs/speed.md)."""
    overlap: bool | None = None
    """Search in a thread while other episodes go on; by default on a GPU. On a CPU a run is then not repeatable bit by
    bit, because which episodes take a step together depends on when documents arrive."""
    keep_cache: bool = True
    """Keep the key-value cache while weights are updated; without, its memory serves both in turn."""
    micro_batch_size: int | None = None
    """Episodes that a process computes gradients of at a time. By default, on a GPU, its share of a mini-batch."""
    micro_batch_tokens: int | None = None
    """Tokens, padding included, that a process computes gradients of at a time: as many episodes as fit. By default, on
    a CPU, 2048."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the computation; the weights that are trained stay float32."""
    share_prompts: bool = True
    """Compute a prompt that rollouts begin with once, where that is less work: for models with a plain output layer,
    unless layers are compiled, checkpointed or sharded."""
    compile: Literal["none", "layers"] = "none"
    """Compile the layers of the model for the update (torch.compile): worth its half minute on a GPU."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    lora_rank: int = 0
    """Train low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of this rank; 0: the weights themselves."""
    lora_alpha: float = 16.0
    """The adapters' output is multiplied by lora_alpha / lora_rank."""


@dataclass(frozen=True)
class SaveConfig:
    """What is kept while a run goes on."""

    resume: bool = False
    """Go on with the run in run_dir, exactly, from the last state that it saved."""
    save_every: int = 10
    """Updates between two saved states."""
    trackers: tuple[str, ...] = ()
    """Where metrics go beside metrics.jsonl: "tensorboard", "wandb", "trackio"."""
    transcripts: int = 4
    """Episodes of an update that are kept, token by token, in training_transcripts.jsonl; 0 for none."""
    transcripts_every: int = 10
    """Updates between two of which episodes are kept; those of the first and the last one always are."""


@dataclass(frozen=True)
class TrainConfig:
    """What is trained, on what, and how much of it there is."""

    env: EnvConfig = field(default_factory=EnvConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    compute: Annotated[ComputeConfig, tyro.conf.arg(name="")] = field(default_factory=ComputeConfig)
    save: Annotated[SaveConfig, tyro.conf.arg(name="")] = field(default_factory=SaveConfig)
    health: Annotated[HealthConfig, tyro.conf.arg(name="")] = field(default_factory=HealthConfig)
    run_dir: Path = Path("runs/train")
    """Where config.json, metrics.jsonl, saved states and the checkpoint go."""
    model: str = "tiny"
    """Policy to start from: "tiny", a Hugging Face directory or hub name, or a GGUF file."""
    seed: int = 1
    """Decides the order of questions, every sampled token and the mini-batches."""
    updates: int = 110
    """Rounds of rollouts, each followed by one or more passes over them."""
    max_seconds: float | None = None
    """Begin no update after so many seconds of training. Learning rates follow the number of updates, not the clock, so
    they want optimizer.final_fraction 1 with it."""
    rollouts_per_update: int = 128
    """Episodes in a round, over all processes."""
    group_size: int = 1
    """Episodes of each question that is drawn; rollouts_per_update / group_size questions are drawn in a round."""
    minibatch_size: int = 32
    """Episodes per optimiser step, over all processes."""
    epochs: int = 1
    """Passes over a round's rollouts."""
    temperature: float = 1.0
    """Sampling temperature; training scores tokens at the same one."""
    top_p: float = 1.0
    """Sample among the most probable tokens that hold this much probability; training scores the whole distribution."""
    kl_coef: float = 0.02
    """Weight of the KL divergence from the model that training started from; 0 also saves its memory."""
    kl: Literal["k1-reward", "k3-loss"] = "k3-loss"
    """Estimator and place of the KL: taken from each token's reward, or added to the loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    use: tuple[str, ...] = ()
    """Functions of your own in the place of built-in ones, FILE.py:FUNCTION each; docs/classroom.md names the slots."""
    preset: str = "default"
    """Values of all other options to start from."""

    @property
    def kl_reward_coef(self) -> float:
        """Weight of the KL that is taken from rewards."""
        return self.kl_coef if self.kl == "k1-reward" else 0.0

    @property
    def kl_loss_coef(self) -> float:
        """Weight of the KL that is added to the loss."""
        return self.kl_coef if self.kl == "k3-loss" else 0.0

    def check(self, num_processes: int = 1) -> None:
        """Raises OptionError: sizes that do not divide one another, or options that exclude each other."""
        micro = self.compute.micro_batch_size or max(1, self.minibatch_size // num_processes)
        for whole, part in (
            ("rollouts_per_update", "minibatch_size"),
            ("rollouts_per_update", "group_size"),
        ):
            _check_divides(whole, getattr(self, whole), part, getattr(self, part))
        _check_divides("rollouts_per_update", self.rollouts_per_update, "number of processes", num_processes)
        _check_divides("minibatch_size", self.minibatch_size, "number of processes", num_processes)
        _check_divides("minibatch_size per process", self.minibatch_size // num_processes, "micro_batch_size", micro)
        for name in ("updates", "epochs"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected {name} >= 1, got {getattr(self, name)}; do: raise it")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise OptionError(f"expected max_seconds > 0, got {self.max_seconds}; do: raise it, or leave it out")
        if (tokens := self.compute.micro_batch_tokens) is not None and tokens < 1:
            raise OptionError(f"expected micro_batch_tokens >= 1, got {tokens}; do: raise it")
        if self.save.save_every < 1:
            raise OptionError(f"expected save_every >= 1, got {self.save.save_every}; do: raise it")
        if self.save.transcripts < 0 or self.save.transcripts_every < 1:
            raise OptionError(
                f"expected transcripts >= 0 and transcripts_every >= 1, got {self.save.transcripts} and "
                f"{self.save.transcripts_every}; do: raise them"
            )


def _check_divides(whole: str, count: int, part: str, size: int) -> None:
    if size < 1 or count % size or not count:
        raise OptionError(
            f"expected {whole} to be a multiple of {part}, got {count} and {size}; do: change one of them"
        )


Config = TypeVar("Config", bound=TrainConfig)


def pick(kind: str, name: str, known: Sequence[str]) -> str:
    """``name``, if it is among ``known``.

    Raises:
        UnknownNameError: it is not; the message suggests the closest names.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known names: {', '.join(known)}."
        raise UnknownNameError(f"expected one of {list(known)} as {kind}, got {name!r}; {hint}")
    return name


def named_preset(presets: Mapping[str, Config], args: Sequence[str] | None = None) -> Config:
    """The preset that a command line names; ``args`` default to those of the process.

    Raises:
        UnknownNameError: there is no such preset.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="default")
    return presets[pick("preset", parser.parse_known_args(args)[0].preset, list(presets))]


def run_command(
    train: Callable[[Any], Any],
    presets: Mapping[str, Config],
    *,
    prog: str,
    doc: str | None,
    args: Sequence[str] | None = None,
) -> None:
    """The command line of an algorithm: options from ``args`` over a preset, then training."""
    disable_progress_bar()
    try:
        if args is None:
            start_missing_processes(prog.removeprefix("python -m "), sys.argv[1:])
        default = named_preset(presets, args)
        config = tyro.cli(type(default), default=default, args=args, prog=prog, description=doc)
        train(config)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    if is_main_process():
        checkpoint = config.run_dir / "checkpoint"
        print(f"The policy is in {checkpoint}; evaluate it with python -m agents.evaluate --model that.")
