"""Supervised fine-tuning: learn from demonstrations what to write, and never try anything.

``--form direct`` is the paper's baseline, question in and answer out, without search. Other forms show how to search
(see ``agents.baselines.demonstrations``); they are what a model that cannot follow a prompt has instead of one.

    python -m agents.baselines.sft --form react
    python -m agents.baselines.sft --model MODEL --form search-once --fit.learning-rate 1e-5 --env.split all \\
        --env.questions jsonl:QUESTIONS --env.corpus CORPUS --env.top-k 3 --env.max-turn-tokens 64 \\
        --env.max-observation-tokens 500 --env.max-context-tokens 2048
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from transformers.utils.logging import disable_progress_bar

from agents.baselines.demonstrations import FORMS, FormName, demonstrate
from agents.checkpoint import load_policy, save_policy
from agents.models import choose_device
from agents.policy import CausalLMWithValueHead
from agents.runlog import RunLog
from agents.supervised import Example, FitConfig, example_of, fit
from agents.tasks import EnvConfig, MakeEnvs, QuestionOrder
from search_gym import TokenCodec
from search_gym.errors import OptionError, SearchGymError

NUM_ENVS = 128


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    env: EnvConfig = field(default_factory=EnvConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    form: FormName = "direct"
    """What the demonstrations look like; "direct" shows an answer and nothing else."""
    demonstrations: int = 4000
    """Training questions that are demonstrated, or all of them where there are fewer."""
    run_dir: Path = Path("runs/sft")
    """Where config.json, metrics.jsonl and the checkpoint go."""
    model: str = "tiny"
    """Policy to start from: "tiny", a Hugging Face directory or hub name, or a GGUF file."""
    seed: int = 1
    """Decides the order of questions and of examples."""
    threads: int = 1
    """Torch's CPU threads; for the tiny model one is as fast as two."""
    device: str = "auto"
    """Where the model runs: "cpu", "cuda", or "auto" for a GPU where there is one."""


def train(config: SFTConfig, *, make_envs: MakeEnvs | None = None, log: RunLog | None = None) -> CausalLMWithValueHead:
    """Fine-tune a policy on demonstrations of ``config.form``, write its checkpoint, and return it.

    The environments are those of the form unless ``make_envs`` is given.

    Raises:
        OptionError: no demonstrations, or questions that do not tell what the form shows.
    """
    torch.set_num_threads(config.threads)
    policy, codec = load_policy(config.model)
    policy.to(choose_device(config.device))
    examples = demonstrations(config, codec, make_envs or FORMS[config.form].make_envs)
    log = log or RunLog(config.run_dir, config, total=config.fit.num_steps(len(examples)), title="SFT")
    with log:
        steps = 0

        def write(metrics: Mapping[str, float]) -> None:
            nonlocal steps
            steps += 1
            log.write({"update": steps, **metrics})

        fit(policy, examples, config.fit, pad_id=codec.pad_id, seed=config.seed, on_step=write)
    save_policy(config.run_dir / "checkpoint", policy, codec)
    return policy


def demonstrations(config: SFTConfig, codec: TokenCodec, make_envs: MakeEnvs) -> list[Example]:
    """The examples that ``config`` asks for.

    Raises:
        OptionError: fewer than one demonstration, or what `demonstrate` raises.
    """
    if config.demonstrations < 1:
        raise OptionError(f"expected demonstrations >= 1, got {config.demonstrations}; do: raise it")
    envs = make_envs(config.env, codec, min(NUM_ENVS, config.demonstrations))
    count = min(config.demonstrations, len(envs.task.questions))
    index = QuestionOrder(len(envs.task.questions), config.seed).take(count)
    return [example_of(transcript) for transcript in demonstrate(envs, FORMS[config.form].policy, index)]


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    disable_progress_bar()
    config = tyro.cli(SFTConfig, args=args, prog="python -m agents.baselines.sft", description=__doc__)
    try:
        train(config)
    except SearchGymError as error:
        sys.exit(f"error: {error}")
    print(f"The policy is in {config.run_dir / 'checkpoint'}.")


if __name__ == "__main__":
    main()
