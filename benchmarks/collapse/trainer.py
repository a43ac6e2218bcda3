"""The trainer of a study: as `agents.trainer.Trainer`, with looks at the policy on the way, and one fault on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType

import torch

from agents.behaviour import valid_structure
from agents.policy import CausalLMPolicy, TokenEvaluation, TokenScores
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
    """

    class StudyTrainer(Trainer):
        def updates(self) -> Iterator[int]:
            for update in super().updates():
                if update in looks:
                    look(update, self.policy)
                yield update

        def collate(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
            batch = super().collate(rollouts)
            if not train_on_documents:
                return batch
            response = batch.response_mask
            scored = self.score(batch, response).logprobs
            old = torch.where(batch.loss_mask, batch.old_logprobs, torch.where(response, scored, 0.0))
            return replace(batch, loss_mask=response, old_logprobs=old)

        def record(
            self,
            rollouts: Sequence[Rollout],
            batch: RolloutBatch,
            old: TokenScores | TokenEvaluation,
            metrics: Mapping[str, float] | None = None,
        ) -> None:
            more = {"rollout/valid_structure": valid_structure(rollouts, self.codec)}
            super().record(rollouts, batch, old, {**more, **(metrics or {})})

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
