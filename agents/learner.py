"""A policy that is improved mini-batch by mini-batch, in as many pieces and processes as there have to be.

Mini-batches may be cut into micro-batches and spread over processes: the weights of all tokens are known before
(``losses.token_weights``), so the gradients of the parts add up to those of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents import losses, sharding
from agents.config import OptimizerConfig, TrainConfig
from agents.micro_batches import Sizes, micro_batches
from agents.policy import CausalLMPolicy, CausalLMWithValueHead, TokenEvaluation, TokenScores
from agents.preparation import prepare_models
from agents.rollout import RolloutBatch

CPU_TOKENS = 2048
"""Tokens that a CPU computes gradients of at a time by default: little padding, and enough to be efficient."""

Stats = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """Rows of a mini-batch whose loss is computed together, cut to the longest of them: tensors are (b, t).

    ``rows`` (b,) and ``minibatch`` (m,) are rows of the round; ``places`` (b,) says where in the mini-batch. The
    gradient of rows that are ``idle`` is known to be 0, and is not computed.
    """

    batch: RolloutBatch
    rows: Tensor
    minibatch: Tensor
    places: Tensor
    idle: bool = False

    @property
    def loss_mask(self) -> Tensor:
        """True = sampled by the policy."""
        return self.batch.loss_mask

    @property
    def old_logprobs(self) -> Tensor:
        """Log-probabilities at sampling, 0 outside ``loss_mask``."""
        return self.batch.old_logprobs

    def cut(self, x: Tensor) -> Tensor:
        """What this part has of ``x`` (B, T), which belongs to the round."""
        return x[self.rows, : self.batch.token_ids.shape[1]]

    def weights(self, mask: Tensor, aggregation: losses.Aggregation = "token-mean", *, max_tokens: int = 1) -> Tensor:
        """`losses.token_weights` of the whole mini-batch, where ``mask`` (B, T) belongs to the round."""
        whole = losses.token_weights(mask[self.minibatch], aggregation, max_tokens=max_tokens)
        return whole[self.places, : self.batch.token_ids.shape[1]]


class Learner:
    """The models, the optimiser, and what is done to them with a round of rollouts.

    ``policy`` is what is trained, with its ``codec``, on ``device``. With FSDP ``trained`` is a sharded copy of it,
    whose weights it gets at the end of every round; else it is the same.
    """

    def __init__(self, config: TrainConfig, *, with_values: bool = False, separate_critic: bool = False) -> None:
        """Raises OptionError, CheckpointError and all that loading the model raises."""
        self.config = config
        torch.set_num_threads(config.compute.threads)
        cpu = config.compute.device == "cpu" or not torch.cuda.is_available()
        self.accelerator = sharding.make_accelerator(cpu)
        self.device = self.accelerator.device
        config.check(self.accelerator.num_processes)
        self.models = prepare_models(config, self.device, with_values=with_values, separate_critic=separate_critic)
        self.policy: CausalLMPolicy = self.models.policy
        self.codec = self.models.codec
        self._training = sharding.trainable(self.models, self.accelerator, config.compute)
        self.trained = self._training.policy
        rates = config.optimizer
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            _parameter_groups(self.trained, rates),
            eps=rates.epsilon,
            weight_decay=rates.weight_decay,
            fused=self.device.type == "cuda",
        )
        if self.is_sharded:
            self._wrapped, self.optimizer = sharding.shard(self.trained, self.optimizer, self.accelerator)
        else:
            self._wrapped = self.accelerator.prepare_model(self.trained)
        self._stats: list[dict[str, Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._num_tokens = self._num_columns = 0
        self._is_idle = False
        self.skipped_steps = 0

    @property
    def is_sharded(self) -> bool:
        """Whether the weights that are trained are spread over the processes."""
        return self.trained is not self.policy

    def gather_weights(self) -> None:
        """Let ``policy`` have the weights that were trained; all processes have to take part."""
        if self.is_sharded:
            sharding.gather(self.trained, self.policy)

    def begin(self, update: int, rate_scale: float = 1.0) -> None:
        """Set the learning rates of ``update`` and forget the statistics of the one before."""
        final = self.config.optimizer.final_fraction
        for group in self.optimizer.param_groups:
            factor = learning_rate_factor(update, self.config.updates, group["warmup"], final)
            group["lr"] = group["peak"] * factor * rate_scale
        self._stats, self.skipped_steps = [], 0
        self._num_tokens = self._num_columns = 0

    @torch.no_grad()
    def score(self, batch: RolloutBatch, mask: Tensor | None = None) -> Any:
        """What the policy says about the tokens in ``mask`` (B, T), by default the sampled ones."""
        return self._score(self.policy, batch, mask)

    @torch.no_grad()
    def score_reference(self, batch: RolloutBatch) -> Tensor | None:
        """Log-probabilities (B, T) of the sampled tokens under the model that training began with; None without KL."""
        if self.config.kl_coef == 0:
            return None
        with self.models.as_reference() as reference:
            return self._score(reference, batch, None).logprobs

    def _score(self, policy: CausalLMPolicy, batch: RolloutBatch, mask: Tensor | None) -> TokenScores | TokenEvaluation:
        mask = batch.loss_mask if mask is None else mask
        kind = TokenEvaluation if isinstance(policy, CausalLMWithValueHead) else TokenScores
        total = kind(*(torch.zeros(mask.shape, device=self.device) for _ in kind._fields))
        for places in self._cut(Sizes.of(batch), policy.share_prompts):
            rows = places.to(self.device)
            part = batch.select(rows)
            length = part.token_ids.shape[1]
            with self._autocast():
                scored = policy.evaluate_tokens(
                    part.token_ids, part.attention_mask, mask[rows, :length], self.config.temperature
                )
            for whole, piece in zip(total, scored, strict=True):
                whole[rows, :length] = piece
        if self.accelerator.num_processes > 1:  # each number comes from one process; the others hold 0
            total = kind(*map(self._sum_over_processes, total))
        return total

    def _sum_over_processes(self, x: Tensor) -> Tensor:
        total = self.accelerator.reduce(x, "sum")
        assert isinstance(total, Tensor)
        return total

    def parts(self, batch: RolloutBatch, seed: int, idle: Tensor | None = None) -> Iterator[Part]:
        """The parts of every mini-batch of every epoch, in an order that ``seed`` decides.

        `backward` is to be called for each part; the optimiser steps when all parts of a mini-batch have been used.
        ``idle`` (B,) says whose loss has no gradient; with several processes it is not made use of.
        """
        config = self.config
        sizes = Sizes.of(batch)
        if idle is None or self.accelerator.num_processes > 1 or self.is_sharded:
            idle = torch.zeros(len(batch), dtype=torch.bool)
        idle = idle.cpu()
        shuffle = torch.Generator().manual_seed(seed)
        for _ in range(config.epochs):
            for minibatch in torch.randperm(len(batch), generator=shuffle).split(config.minibatch_size):
                pieces = self._pieces(sizes[minibatch], idle[minibatch])
                self._sums: dict[str, Tensor] = {}
                self.optimizer.zero_grad()
                for i, (piece, self._is_idle) in enumerate(pieces):
                    # A sharded model exchanges the gradients of each part, so that none has to be kept whole.
                    syncs = self.is_sharded or i == len(pieces) - 1
                    with nullcontext() if syncs else self.accelerator.no_sync(self._wrapped):
                        rows = minibatch[piece].to(self.device)
                        lengths = sizes.lengths[minibatch[piece]]
                        self._num_tokens += int(lengths.sum())
                        self._num_columns += len(piece) * int(lengths.max())
                        places = piece.to(self.device)
                        yield Part(batch.select(rows), rows, minibatch.to(self.device), places, self._is_idle)
                if all(is_idle for _, is_idle in pieces):
                    self._set_gradients_to_zero()
                self._step()
        self.gather_weights()

    def _pieces(self, sizes: Sizes, is_idle: Tensor) -> list[tuple[Tensor, bool]]:
        """Which rows of a mini-batch are computed together, and whether without a gradient."""
        found: list[tuple[Tensor, bool]] = []
        for kind in (False, True):
            (places,) = (is_idle == kind).nonzero(as_tuple=True)
            if len(places):
                found += [(places[piece], kind) for piece in self._cut(sizes[places], self.trained.share_prompts)]
        return found

    def _set_gradients_to_zero(self) -> None:
        """Let the optimiser see gradients of 0, for which its moments count; without any it would do nothing."""
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)

    def evaluate(self, part: Part, mask: Tensor | None = None) -> Any:
        """What the policy says about the tokens of ``part`` in ``mask`` (b, t), by default the sampled ones."""
        with self._autocast(), self._training.recomputing(), torch.set_grad_enabled(not part.idle):
            return self._wrapped(
                part.batch.token_ids,
                part.batch.attention_mask,
                part.loss_mask if mask is None else mask,
                self.config.temperature,
                entropy_grad=self.config.entropy_coef != 0,
            )

    def backward(self, loss: Tensor, stats: Stats) -> None:
        """Add the gradient of a part's share of the loss, and its shares of the statistics.

        Statistics are summed over the parts of a mini-batch, except those whose name ends in "_max".
        """
        if not self._is_idle:
            # Processes average their gradients, but each has computed its share of a sum.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        for name, value in stats.items():
            value = value.detach().float()
            if name not in self._sums:
                self._sums[name] = value
            elif name.endswith("_max"):
                self._sums[name] = torch.maximum(self._sums[name], value)
            else:
                self._sums[name] = self._sums[name] + value

    def _step(self) -> None:
        norm = self._clip_gradients()
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped_steps += 1
        self.optimizer.zero_grad()  # a round is sampled and scored without their memory
        names = list(self._sums)
        values = self.accelerator.gather(torch.stack([self._sums[name] for name in names])[None])
        assert isinstance(values, Tensor)
        merged = {
            name: column.max() if name.endswith("_max") else column.sum()
            for name, column in zip(names, values.unbind(dim=1), strict=True)
        }
        self._stats.append({**merged, "grad_norm": norm.detach()})

    def _clip_gradients(self) -> Tensor:
        """Clip the gradient, a separate critic's by itself, and return the norm that the policy's had."""
        groups = [group["params"] for group in self.optimizer.param_groups]
        if not (isinstance(self.policy, CausalLMWithValueHead) and self.policy.critic is not None):
            groups = [[weight for group in groups for weight in group]]
        norms = [self.accelerator.clip_grad_norm_(group, self.config.optimizer.max_grad_norm) for group in groups]
        norms = [sharding.whole(norm) for norm in norms if norm is not None]
        is_finite = len(norms) == len(groups) and all(torch.isfinite(norm) for norm in norms)
        return norms[0] if is_finite else torch.tensor(torch.nan, device=self.device)

    def statistics(self) -> dict[str, float]:
        """Statistics over the round's optimiser steps: means, and maxima of those whose name ends in "_max"."""
        if not self._stats:
            return {}
        columns = {name: torch.stack([stats[name] for stats in self._stats]) for name in self._stats[0]}
        return {
            f"loss/{name}": float(column.max() if name.endswith("_max") else column.mean())
            for name, column in columns.items()
        }

    @property
    def padding(self) -> float:
        """The share of padding in what this process has computed gradients of since `begin`."""
        return 1.0 - self._num_tokens / max(1, self._num_columns)

    def _cut(self, sizes: Sizes, shares_prompts: bool) -> list[Tensor]:
        """Which of the rollouts of these ``sizes`` this process computes together, part by part."""
        compute, num_processes = self.config.compute, self.accelerator.num_processes
        rows, tokens = compute.micro_batch_size, compute.micro_batch_tokens
        if rows is None and tokens is None:
            if self.device.type == "cpu":
                tokens = CPU_TOKENS
            else:
                rows = self.config.minibatch_size // num_processes
        order, costs = sizes.order(self.policy.model.config if shares_prompts else None, num_processes)
        ours = order[self.accelerator.process_index :: num_processes]
        cuts = micro_batches(costs.tolist(), rows=rows, tokens=tokens, num_processes=num_processes)
        return [ours[cut] for cut in cuts]

    def _autocast(self) -> torch.autocast:
        """Autocast keeps what it has cast until it ends, a copy of all weights, unless memory is what is short."""
        compute = self.config.compute
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=compute.precision == "bf16",
            cache_enabled=not compute.gradient_checkpointing,
        )


def _parameter_groups(policy: CausalLMPolicy, rates: OptimizerConfig) -> list[dict[str, Any]]:
    """The weights that are trained: the language model's, and the value function's with its own rate and warm-up."""
    groups: list[dict[str, Any]] = [
        {
            "params": [weight for weight in policy.model.parameters() if weight.requires_grad],
            "peak": rates.learning_rate,
            "warmup": rates.warmup_updates,
        }
    ]
    if isinstance(policy, CausalLMWithValueHead):
        critic = [] if policy.critic is None else list(policy.critic.parameters())
        warmup = rates.value_warmup_updates
        groups.append(
            {
                "params": [*policy.value_head.parameters(), *critic],
                "peak": rates.value_learning_rate,
                "warmup": rates.warmup_updates if warmup is None else warmup,
            }
        )
    return groups


def learning_rate_factor(update: int, updates: int, warmup_updates: int, final_fraction: float) -> float:
    """Linear warm-up, times a linear fall to ``final_fraction``; ``update`` counts from 0 to ``updates`` - 1."""
    warm = min(1.0, (update + 1) / (warmup_updates + 1))
    progress = min(1.0, update / max(1, updates - 1))
    return warm * (1.0 - (1.0 - final_fraction) * progress)
