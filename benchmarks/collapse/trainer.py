"""The trainer of a study: as `agents.trainer.Trainer`, with looks at the policy on the way, and one fault on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch

from agents.behaviour import behaviour_metrics, valid_structure
from agents.metrics import rollout_metrics, zero_variance_groups
from agents.policy import CausalLMPolicy
from agents.rollout import Rollout, RolloutBatch
from agents.trainer import Trainer

Look = Callable[[int, CausalLMPolicy], None]
"""Told how many updates are finished, and the policy after them."""


def make_trainer(looks: Sequence[int], look: Look, *, train_on_documents: bool = False) -> type[Trainer]:
    """A class to use in the place of `Trainer`.

    ``look`` is called when as many updates are finished as ``looks`` say; it must leave the policy as it is.
    ``train_on_documents`` is the fault of trainers without an information mask: what the environment wrote counts as
    sampled, in advantages, losses and statistics. What these tokens' log-probabilities were at sampling is asked of the
    policy that sampled, since no sampler has it.

    Metrics of behaviour are those of all episodes of an update, and an update that finds nothing to train on has a row
    of them: a run that has collapsed must not go unseen because its algorithm leaves out what it fails at.
    """

    class StudyTrainer(Trainer):
        def updates(self) -> Iterator[int]:
            for update in super().updates():
                if update in looks:
                    look(update, self.policy)
                self.collected: list[Rollout] = []
                yield update

        def collect(self) -> list[Rollout]:
            rollouts = super().collect()
            self.collected += rollouts
            return rollouts

        def collate(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
            batch = super().collate(rollouts)
            if not train_on_documents:
                return batch
            response = batch.response_mask
            scored = self.score(batch, response).logprobs
            old = torch.where(batch.loss_mask, batch.old_logprobs, torch.where(response, scored, 0.0))
            return replace(batch, loss_mask=response, old_logprobs=old)

        def behaviour(self) -> dict[str, float]:
            """What all episodes of the update come to, those included that an algorithm does not train on."""
            metrics = {
                **rollout_metrics(self.collected),
                **behaviour_metrics(self.collected),
                "rollout/valid_structure": valid_structure(self.collected, self.codec),
            }
            if self.config.group_size > 1:
                metrics["rollout/zero_variance_groups"] = zero_variance_groups(super().collate(self.collected))
            return metrics

        def record(
            self,
            rollouts: Sequence[Rollout],
            batch: RolloutBatch,
            advantages: torch.Tensor,
            metrics: Mapping[str, float] | None = None,
            *,
            values: torch.Tensor | None = None,
        ) -> None:
            super().record(rollouts, batch, advantages, {**self.behaviour(), **(metrics or {})}, values=values)

        def skip(self) -> None:
            self.log.write({"update": self.update + 1, **self.behaviour()})
            super().skip()

    return StudyTrainer


@contextmanager
def using(trainer: type[Trainer], algorithm: ModuleType) -> Iterator[None]:
    """While the block runs, ``algorithm.train`` makes a ``trainer`` where it would make a `Trainer`.

    Algorithms have no option for it, and should have none: what a study does to a run is not what they teach.
    """
    before = algorithm.Trainer
    setattr(algorithm, "Trainer", trainer)  # noqa: B010
    try:
        yield
    finally:
        setattr(algorithm, "Trainer", before)  # noqa: B010
