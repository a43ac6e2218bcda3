"""What a training run needs besides its algorithm: rollouts, a learner, saved states, a log, a look at its health.

An algorithm is a loop over `Trainer.updates` that collects rollouts, turns rewards into advantages, and computes a loss
for each part of each mini-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from agents import saving
from agents.behaviour import behaviour_metrics
from agents.checkpoint import save_policy
from agents.config import TrainConfig
from agents.generation import make_generator
from agents.health import COLLAPSES, Alarm, HealthMonitor
from agents.learner import Learner, Part
from agents.metrics import logprob_mismatch, rollout_metrics, zero_variance_groups
from agents.pieces import Pieces
from agents.rollout import Rollout, RolloutBatch, collate, collect
from agents.runlog import RunLog, to_jsonable
from agents.tasks import MakeEnvs, QuestionOrder
from agents.trackers import make_tracker
from agents.training_state import TrainingState, drop_states, read_state, write_state
from agents.training_transcripts import TrainingTranscripts
from search_gym.errors import RetrievalError, SearchGymError

MAX_ROLLBACKS = 3
CHECKED = 8
"""One rollout in so many is scored to see that training and sampling are of the same policy."""


class CollapseError(SearchGymError, RuntimeError):
    """Training has collapsed, and the options say that it should stop then."""


class Trainer(Learner):
    """One run, to be used as a context manager; ``agents/ppo.py`` shows how. ``update`` counts from 0."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        title: str,
        make_envs: MakeEnvs,
        log: RunLog | None = None,
        with_values: bool = False,
        separate_critic: bool = False,
    ) -> None:
        """Raises OptionError, CheckpointError and all that loading the model and making the environments raises."""
        options = {"algorithm": title, **to_jsonable(config)}
        state = read_state(config.run_dir) if config.save.resume else None
        if state is not None:
            saving.check_same_options(config.run_dir, options)
        self.pieces = Pieces(config.use)
        super().__init__(config, with_values=with_values, separate_critic=separate_critic)
        self._share = config.rollouts_per_update // self.accelerator.num_processes
        self.envs = make_envs(config.env, self.codec, min(config.compute.num_envs or self._share, self._share))
        self.pieces.install(self.envs, config.env.corpus)
        self._generator = make_generator(
            self.policy.model,
            self.codec,
            engine=config.compute.engine,
            temperature=config.temperature,
            top_p=config.top_p,
            dtype=torch.bfloat16 if config.compute.precision == "bf16" else None,
        )
        self._overlap = self.device.type != "cpu" if config.compute.overlap is None else config.compute.overlap
        self._order = QuestionOrder(len(self.envs.task.questions), config.seed)
        self._monitor = self._new_monitor()
        self.update = 0
        self._rollbacks = 0
        self._counts = {"rollouts": 0, "sampled_tokens": 0}

        if state is not None:
            self._restore(state)
        is_main = self.accelerator.is_main_process
        trackers = config.save.trackers if is_main else ()
        if is_main:
            self.pieces.keep(config.run_dir / "used")
        self.log = log or RunLog(
            config.run_dir,
            options,
            total=config.updates,
            title=title,
            finished=self.update,
            trackers=[make_tracker(name, config.run_dir, options, finished=self.update) for name in trackers],
            enabled=is_main,
        )
        self._transcripts = TrainingTranscripts(config, self.codec, finished=self.update) if is_main else None

    def __enter__(self) -> Trainer:
        self.log.__enter__()
        if self.update == 0:
            if self.accelerator.is_main_process:
                drop_states(self.config.run_dir, after=-1)  # of an earlier run in this folder
            if self.config.health.on_collapse == "rollback":
                self._save_state()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.log.__exit__(kind, error, trace)

    def updates(self) -> Iterator[int]:
        """The numbers of the updates that are left; after the last one the policy is saved in ``run_dir/checkpoint``.

        Raises:
            CollapseError: training has collapsed, and should stop then.
        """
        while self.update < self.config.updates and not self._is_out_of_time():
            self.begin(self.update, 0.5**self._rollbacks)
            self._draws = 0
            self._begun = self._order.taken, dict(self._counts)
            self._started, self._rollout_seconds = self.log.seconds, 0.0
            self._mismatch: dict[str, float] = {}
            yield self.update
        self._save_policy()

    def _is_out_of_time(self) -> bool:
        """Whether ``max_seconds`` have passed by the clock of the main process, which all of them have to go by."""
        limit = self.config.max_seconds
        if limit is None:
            return False
        is_over = self.log.seconds >= limit
        return gather_object([is_over])[0] if self.accelerator.num_processes > 1 else is_over

    # Rollouts

    def collect(self) -> list[Rollout]:
        """A round of episodes: ``group_size`` for each question drawn, in a row. Every process gets all of them.

        To be called before the first `backward` of the update.

        Raises:
            RetrievalError: a search failed, in this process or another; the state at the start of this update is saved.
        """
        config, started = self.config, self.log.seconds
        drawn = self._order.take(config.rollouts_per_update // config.group_size)
        first = self.accelerator.process_index * self._share
        ours = np.repeat(drawn, config.group_size)[first : first + self._share]
        found: list[Rollout] | str
        try:
            with self._autocast():
                found = collect(
                    self.envs,
                    self._generator,
                    ours,
                    self._seed("rollouts"),
                    first_episode=first,
                    overlap=self._overlap,
                )
        except RetrievalError as error:
            found = str(error)
        if not config.compute.keep_cache:
            self._generator.release()
        # All processes hear of a failure where they would have got rollouts, so that none waits for another.
        shares: list[list[Rollout] | str] = [found]
        if self.accelerator.num_processes > 1:
            shares = gather_object(shares)
        failures = [share for share in shares if isinstance(share, str)]
        if failures:
            self._fail(failures[0])
        rollouts = [rollout for share in shares if not isinstance(share, str) for rollout in share]
        self._draws += 1
        self._counts["rollouts"] += len(rollouts)
        self._counts["sampled_tokens"] += int(sum(rollout.loss_mask.sum() for rollout in rollouts))
        self._rollout_seconds += self.log.seconds - started
        return rollouts

    def _fail(self, failure: str) -> NoReturn:
        """Save what this update began with, from which the run goes on as if nothing had happened, and raise."""
        self._order.taken, self._counts = self._begun
        saved = self._save_healthy_state()
        state = f"the state before update {self.update + 1}" if saved else "its last healthy state"
        raise RetrievalError(
            f"update {self.update + 1}: {failure}; {state} is saved in {self.config.run_dir}, do: mend the retriever, "
            "then run again with --resume"
        )

    def collate(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
        """``rollouts``, whole groups in a row, as one batch on the device."""
        batch = collate(rollouts, self.codec.pad_id, self.device, group_size=self.config.group_size)
        return self.pieces.mask(rollouts, batch, super().score)

    def score(self, batch: RolloutBatch, mask: Tensor | None = None) -> Any:
        """What the policy says about the tokens in ``mask`` (B, T), by default the sampled ones."""
        scored = super().score(batch, mask)
        self._mismatch = logprob_mismatch(scored, batch)
        return scored

    def minibatches(self, batch: RolloutBatch, advantages: Tensor | None = None) -> Iterator[Part]:
        """`Learner.parts` of this update.

        Unless the policy has scored the batch already, it scores some of it now, because training has to see the policy
        that sampled.

        ``advantages`` (B, T): where they alone have a gradient, that of rollouts whose advantages are 0, as those of a
        group that earned the same are, is 0 and is not computed. A loss of the user's own may have any gradient.
        """
        if not self._mismatch:
            self.score(batch.select(self._checked(len(batch)).to(self.device)))
        config = self.config
        others = config.entropy_coef, config.kl_loss_coef, getattr(config, "llds_coef", 0.0)
        idle = None
        if advantages is not None and not any(others) and "clipped_loss" not in self.pieces:
            idle = (advantages.where(batch.loss_mask, 0.0) == 0).all(dim=1)
        return self.parts(batch, self._seed("mini-batches"), idle)

    def _checked(self, size: int) -> Tensor:
        """Which of ``size`` rollouts are scored to be checked: as many for each process."""
        processes = self.accelerator.num_processes
        count = min(size, max(1, size // CHECKED // processes) * processes)
        return torch.arange(count) * (size // count)

    # The end of an update

    def skip(self) -> None:
        """End an update that found nothing to train on; it leaves no row in the log."""
        self.update += 1
        self._save_when_due()

    def record(
        self,
        rollouts: Sequence[Rollout],
        batch: RolloutBatch,
        advantages: Tensor,
        metrics: Mapping[str, float] | None = None,
        *,
        values: Tensor | None = None,
    ) -> None:
        """Log the update, keep some of its episodes, look after the run's health, and save its state when it is time.

        ``rollouts`` and ``batch`` are those that were trained on, with ``advantages`` (B, T), and ``values`` (B, T) are
        what the policy expected before, if it has a value head. ``metrics`` are logged too.

        Raises:
            CollapseError: training has collapsed, and should stop then.
        """
        seconds = self.log.seconds - self._started
        sampled = int(batch.loss_mask.sum())
        row = {
            "update": self.update + 1,
            **rollout_metrics(rollouts),
            **behaviour_metrics(rollouts),
            "rollout/total_rollouts": self._counts["rollouts"],
            "rollout/total_sampled_tokens": self._counts["sampled_tokens"],
            **({"rollout/zero_variance_groups": zero_variance_groups(batch)} if self.config.group_size > 1 else {}),
            **self.statistics(),
            "loss/skipped_steps": self.skipped_steps,
            **self._mismatch,
            "loss/learning_rate": self.optimizer.param_groups[0]["lr"],
            **(metrics or {}),
            "time/rollout_seconds": self._rollout_seconds,
            "time/update_seconds": seconds - self._rollout_seconds,
            "time/tokens_per_second": sampled / seconds,
            "time/padding": self.padding,
        }
        alarms = [*self._monitor.check(row), *self.pieces.warnings([*self.log.rows, row])]
        self.pieces.check_used(self.log.title)
        self.log.write(row, alarms)
        self.update += 1
        if self._transcripts is not None and self._transcripts.is_due(self.update):
            self._transcripts.write(self.update, rollouts, batch, advantages, values, self.policy)
        collapse = next((alarm for alarm in alarms if alarm.is_collapse), None)
        if collapse is not None:
            self._handle(collapse)
        else:
            self._save_when_due()

    def _handle(self, collapse: Alarm) -> None:
        """Do what the options say about a collapse."""
        action = self.config.health.on_collapse
        if action == "stop" or (action == "rollback" and self._rollbacks == MAX_ROLLBACKS):
            self._save_policy()
            raise CollapseError(
                f"expected a healthy run, got a collapse in update {collapse.update}: {collapse.message}; do: use the "
                f"policy in {self.config.run_dir / 'checkpoint'}, or change the options and train again"
            )
        if action == "rollback":
            state = read_state(self.config.run_dir)
            assert state is not None  # one was saved before the first update
            rollbacks = self._rollbacks + 1
            self.log.rewind(state.update)
            if self._transcripts is not None:
                self._transcripts.rewind(state.update)
            self._restore(state)
            self._rollbacks = rollbacks
            self.log.say(f"back to update {state.update}, from there with half the learning rate and other samples")

    def _new_monitor(self) -> HealthMonitor:
        precision = "bfloat16" if self.config.compute.precision == "bf16" else "float32"
        return HealthMonitor(self.config.health, precision=precision)

    # States

    def _save_when_due(self) -> None:
        if self.update % self.config.save.save_every == 0 or self.update == self.config.updates:
            self._save_healthy_state()

    def _save_healthy_state(self) -> bool:
        """Save the state, unless the policy is in danger: a collapsed one is nothing to go back to."""
        if COLLAPSES & set(self._monitor.state()["active"]):
            return False
        self._save_state()
        return True

    def _save_state(self) -> None:
        data = {
            "taken": self._order.taken,
            "rollbacks": self._rollbacks,
            "counts": self._counts,
            "health": self._monitor.state(),
        }
        tensors = saving.run_tensors(self.trained, self.optimizer, is_main_process=self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            write_state(self.config.run_dir, TrainingState(self.update, tensors, data))
        self.accelerator.wait_for_everyone()

    def _restore(self, state: TrainingState) -> None:
        saving.restore_tensors(state.tensors, self.trained, self.optimizer)
        self.gather_weights()
        self.update = state.update
        self._order.taken = state.data["taken"]
        self._rollbacks = state.data["rollbacks"]
        self._counts = dict(state.data["counts"])
        self._monitor.load_state(state.data["health"])

    def _save_policy(self) -> None:
        self.models.merge_adapters()
        if self.accelerator.is_main_process:
            save_policy(self.config.run_dir / "checkpoint", self.policy, self.codec)
        self.accelerator.wait_for_everyone()

    # Small things

    def _seed(self, purpose: str) -> int:
        """A seed that belongs to this update, and to the number of rounds collected and rollbacks suffered in it."""
        key = (self.config.seed, self.update, self._draws, self._rollbacks, *purpose.encode())
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
