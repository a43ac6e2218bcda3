"""Fine-tuning on token sequences by maximum likelihood: what supervised fine-tuning and rejection sampling share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from agents import losses
from agents.policy import CausalLMWithValueHead, evaluate_tokens
from search_gym import Transcript
from search_gym.errors import OptionError


@dataclass(frozen=True)
class FitConfig:
    """Adam on the negative log-likelihood, with a learning rate that rises linearly and then falls linearly."""

    learning_rate: float = 2e-3
    """Peak for the language model; 1e-5 is a usual one for real models."""
    warmup_fraction: float = 0.05
    """Part of the optimiser steps over which the rate rises from 0."""
    final_fraction: float = 0.1
    """Part of the peak that is left at the last step."""
    batch_size: int = 32
    """Examples per optimiser step."""
    epochs: int = 4
    """Passes over the examples."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        """Raises OptionError when there would be no step."""
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise OptionError(f"expected {name} >= 1, got {getattr(self, name)}; do: raise it")

    def num_steps(self, num_examples: int) -> int:
        """Optimiser steps on so many examples; the last batch of a pass may be smaller."""
        return self.epochs * -(-num_examples // self.batch_size)


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence to learn from: ``token_ids`` (T,) int64 and ``loss_mask`` (T,) bool, True = a token to predict."""

    token_ids: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.bool_]


def example_of(transcript: Transcript) -> Example:
    """The example in which every token of an action is to be predicted, and nothing that the environment wrote."""
    return Example(transcript.token_ids, transcript.loss_mask)


def pad(
    examples: Sequence[Example], pad_id: int, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """``token_ids``, ``attention_mask`` (True = a token of the example) and ``loss_mask``, padded on the right."""
    shape = (len(examples), max(len(example.token_ids) for example in examples))
    token_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask, loss_mask = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    for row, example in enumerate(examples):
        length = len(example.token_ids)
        token_ids[row, :length] = example.token_ids
        attention_mask[row, :length] = True
        loss_mask[row, :length] = example.loss_mask
    ids, attention, loss = (torch.from_numpy(x).to(device) for x in (token_ids, attention_mask, loss_mask))
    return ids, attention, loss


def fit(
    policy: CausalLMWithValueHead,
    examples: Sequence[Example],
    config: FitConfig,
    *,
    pad_id: int,
    seed: int,
    on_step: Callable[[Mapping[str, float]], None] | None = None,
) -> None:
    """Lower the mean negative log-likelihood of the tokens in ``loss_mask``, over ``config.epochs`` shuffled passes.

        loss = - (1 / N) sum over the N tokens of a batch of log p(token | all tokens before it)

    The value head is left as it is. ``on_step`` is told, after each optimiser step, ``loss/nll`` (nats per token),
    ``loss/entropy`` (of the distribution at those tokens, in nats), ``loss/grad_norm`` and ``loss/learning_rate``.

    Raises:
        OptionError: no examples.
    """
    if not examples:
        raise OptionError("expected examples to learn from, got none; do: see why none was kept")
    model = policy.model.eval()  # without dropout, as in all training here
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, eps=1e-5)
    total = config.num_steps(len(examples))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, config))
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(examples), generator=shuffle).split(config.batch_size):
            token_ids, attention_mask, loss_mask = pad([examples[i] for i in rows.tolist()], pad_id, model.device)
            scores = evaluate_tokens(
                model,
                token_ids,
                attention_mask,
                loss_mask,
                temperature=1.0,
                vocab_size=policy.vocab_size,
                entropy_grad=False,
            )
            loss = -losses.masked_mean(scores.logprobs, loss_mask)
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            rate = schedule.get_last_lr()[0]
            schedule.step()
            if on_step is not None:
                on_step(
                    {
                        "loss/nll": float(loss.detach()),
                        "loss/entropy": float(losses.masked_mean(scores.entropies, loss_mask)),
                        "loss/grad_norm": float(norm),
                        "loss/learning_rate": float(rate),
                    }
                )


def learning_rate_factor(step: int, total: int, config: FitConfig) -> float:
    """Linear warm-up, times a linear fall to ``final_fraction``; ``step`` counts from 0 to ``total`` - 1."""
    warmup = config.warmup_fraction * total
    warm = min(1.0, (step + 1) / (warmup + 1))
    return warm * (1.0 - (1.0 - config.final_fraction) * min(1.0, step / max(1, total - 1)))
