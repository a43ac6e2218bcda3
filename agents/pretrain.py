"""Make the tiny base model: language-model pretraining on babbled episodes (see ``agents.babble``).

    python -m agents.pretrain --output-dir agents/assets/tiny-base

writes ``config.json``, ``model.safetensors`` and ``pretrain.json`` (the command, its options, what the model can do).
The same options give the same weights, bit by bit, on one machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from agents import babble
from agents.diagnostics import copy_accuracy, repeat_accuracy, sampled_behaviour
from agents.runlog import command_line, to_jsonable, write_json
from agents.tiny import TinyConfig, TinyForCausalLM
from search_gym import tinywiki
from search_gym.codec import TokenIds, WordCodec

IGNORED_LABEL = -100
POOL_SIZE = 16


@dataclass(frozen=True)
class PretrainConfig:
    """Language-model pretraining of the tiny model on random episodes of TinyWiki."""

    output_dir: Path = Path("runs/tiny-base")
    """Where the checkpoint goes."""
    seed: int = 0
    """Decides the text, its order and the initial weights."""
    updates: int = 1500
    """Optimiser steps."""
    batch_size: int = 16
    """Episodes per step, on average."""
    learning_rate: float = 6e-3
    """Peak of AdamW's learning rate: a linear warm-up over a twentieth of the steps, then a cosine to a tenth."""
    sloppy: float = 0.3
    """Share of turns with a missing, mismatched or misplaced tag."""
    hidden_size: int = 64
    """Width of the model."""
    num_blocks: int = 3
    """Transformer blocks before the pointer head."""
    num_heads: int = 4
    """Attention heads per block."""
    num_samples: int = 512
    """Held-out questions that are asked, sampled and greedily, to see what the base model does."""
    threads: int = 1
    """Torch's CPU threads. Another number may change the last bits of the weights."""


def pad_rows(rows: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    """``rows`` padded on the right: token_ids (B, T), and attention_mask (B, T), True = real token."""
    lengths = torch.tensor([len(row) for row in rows])
    attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    token_ids = torch.full(attention_mask.shape, pad_id)
    token_ids[attention_mask] = torch.from_numpy(np.concatenate(rows))
    return token_ids, attention_mask


def batches(config: PretrainConfig, codec: WordCodec) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of fresh episodes.

    The episodes of a batch have similar lengths, so that little is padding; batches have about as many tokens each, so
    that a token weighs the same in a short episode and in a long one.
    """
    rng = np.random.default_rng(config.seed)
    others = babble.other_questions(config.seed)
    while True:
        rows = [
            babble.random_episode(rng, codec, others, config.sloppy).token_ids
            for _ in range(POOL_SIZE * config.batch_size)
        ]
        rows.sort(key=len)
        tokens = np.cumsum([len(row) for row in rows])
        cuts = np.searchsorted(tokens, tokens[-1] * np.arange(POOL_SIZE + 1) / POOL_SIZE).tolist()
        for i in rng.permutation(POOL_SIZE).tolist():
            yield pad_rows(rows[cuts[i] : cuts[i + 1]], codec.pad_id)


def learning_rate_factor(update: int, updates: int) -> float:
    """Linear warm-up over a twentieth of the updates, then a cosine from 1 to a tenth; ``update`` counts from 0."""
    warmup = max(1, updates // 20)
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def pretrain(
    config: PretrainConfig, codec: WordCodec, *, on_update: Callable[[float], None] | None = None
) -> TinyForCausalLM:
    """Train a new model on every token of the episodes, the environment's included.

    ``on_update`` is told the loss, in nats per token, after each step.
    """
    torch.set_num_threads(config.threads)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(config.seed)
        model = TinyForCausalLM(
            TinyConfig(
                vocab_size=codec.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.num_blocks + 1,
                num_attention_heads=config.num_heads,
                pad_token_id=codec.pad_id,
                eos_token_id=codec.eos_id,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate_factor(i, config.updates))
    source = batches(config, codec)
    model.train()
    for _ in range(config.updates):
        token_ids, attention_mask = next(source)
        labels = token_ids.masked_fill(~attention_mask, IGNORED_LABEL)
        loss = model(token_ids, attention_mask=attention_mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        schedule.step()
        if on_update is not None:
            on_update(loss.item())
    return model.eval()


def main(config: PretrainConfig) -> None:
    """Pretrain, report and save."""
    disable_progress_bar()
    codec = tinywiki.codec()
    started = time.perf_counter()
    console = Console()
    columns = (TextColumn("pretraining"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=config.updates, loss=math.nan)
        model = pretrain(config, codec, on_update=lambda loss: progress.update(task, advance=1, loss=loss))
    report = {
        "command": command_line(),
        "options": to_jsonable(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "copy_accuracy": copy_accuracy(model, codec),
        "repeat_accuracy": repeat_accuracy(model, codec),
        "sampled": sampled_behaviour(model, codec, config.num_samples),
        "greedy": sampled_behaviour(model, codec, config.num_samples, greedy=True),
    }
    console.print_json(data=report)
    model.save_pretrained(config.output_dir)
    write_json(config.output_dir / "pretrain.json", report)


if __name__ == "__main__":
    main(tyro.cli(PretrainConfig))
