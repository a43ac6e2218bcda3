"""Episodes that a run was trained on, kept on the way in ``training_transcripts.jsonl`` for the page of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.config import TrainConfig
from agents.policy import CausalLMPolicy
from agents.rollout import Rollout, RolloutBatch
from agents.runlog import finished_lines, write_text
from agents.transcripts import describe
from search_gym import TokenCodec

FILE = "training_transcripts.jsonl"


class TrainingTranscripts:
    """Keeps the first ``save.transcripts`` episodes of some updates: the first, the last, and every n-th.

    A row is that of `agents.transcripts.describe` and has the ``update``, counted from 1. Its ``values`` are those of
    the policy that sampled, ``advantages`` those that were trained on, and ``ratios`` compare the probability that a
    token has after the update with that at sampling. They cost a forward pass for each episode that is kept.
    """

    def __init__(self, config: TrainConfig, codec: TokenCodec, *, finished: int = 0) -> None:
        """Begin a file, or go on with the rows of the first ``finished`` updates.

        Raises:
            SearchGymError: a row is malformed.
        """
        self._config, self._codec = config, codec
        self._path = config.run_dir / FILE
        self.rewind(finished)

    def rewind(self, finished: int) -> None:
        """Drop the rows of updates after the first ``finished`` ones."""
        if not self._path.exists():
            return
        kept = "".join(line for _, line in finished_lines(self._path, finished)) if finished else ""
        if kept:
            write_text(self._path, kept)
        else:
            self._path.unlink()

    def is_due(self, update: int) -> bool:
        """Whether episodes of ``update``, counted from 1, are kept."""
        save, last = self._config.save, self._config.updates
        return save.transcripts > 0 and (update in (1, last) or update % save.transcripts_every == 0)

    def write(
        self,
        update: int,
        rollouts: Sequence[Rollout],
        batch: RolloutBatch,
        advantages: Tensor,
        values: Tensor | None,
        policy: CausalLMPolicy,
    ) -> None:
        """Append the first of ``rollouts``, which are the rows of ``batch``.

        ``advantages`` (B, T) are what the policy was trained with, ``values`` (B, T) what it expected before, if it
        has a value head, and ``policy`` is the one after the update.
        """
        kept = rollouts[: self._config.save.transcripts]
        numbers = [self._numbers(row, rollout, batch, advantages, values, policy) for row, rollout in enumerate(kept)]
        rows = describe(kept, self._codec, label=f"training, update {update}", numbers=numbers)
        lines = "".join(json.dumps({"update": update, **row}) + "\n" for row in rows)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(lines)

    @torch.no_grad()
    def _numbers(
        self,
        row: int,
        rollout: Rollout,
        batch: RolloutBatch,
        advantages: Tensor,
        values: Tensor | None,
        policy: CausalLMPolicy,
    ) -> Mapping[str, npt.NDArray[np.float32]]:
        """What is known about the sampled tokens of one episode, in order."""
        rows, columns = slice(row, row + 1), slice(0, len(rollout.token_ids))
        device = batch.token_ids.device
        sampled = torch.from_numpy(rollout.loss_mask).to(device)[None]
        is_half = self._config.compute.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
            new = policy.evaluate_tokens(
                batch.token_ids[rows, columns], batch.attention_mask[rows, columns], sampled, self._config.temperature
            )
        ratios = (new.logprobs - batch.old_logprobs[rows, columns]).exp()
        known = {"advantages": advantages[rows, columns], "ratios": ratios}
        if values is not None:
            known = {"values": values[rows, columns], **known}
        return {name: x[sampled].float().cpu().numpy() for name, x in known.items()}
