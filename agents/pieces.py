"""Functions of your own in the place of a trainer's: what ``--use my_gae.py:gae`` does.

They work on numpy arrays and plain data; `search_gym.exercises.catalogue.SLOTS` says what each slot gives and expects.
They run in this process, so use files that you trust.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents import losses
from agents.health import Alarm
from agents.rollout import Rollout, RolloutBatch
from agents.student_retrieval import StudentBM25, StudentSearch
from search_gym import SearchVectorEnv
from search_gym.corpus import load_corpus
from search_gym.errors import OptionError, SearchGymError, UnknownNameError
from search_gym.exercises.catalogue import SLOTS
from search_gym.rewards import Outcome


class PieceError(SearchGymError, RuntimeError):
    """A function that ``--use`` names failed, or returned something else than its slot expects."""


class Pieces:
    """The functions of a training that may be the user's own; those that are not given are the built-in ones.

    ``calls`` counts how often each of the user's functions was called.
    """

    def __init__(self, specs: Sequence[str] = ()) -> None:
        """``specs``: "FILE.py:FUNCTION", where the function has the name of its slot, or "SLOT=FILE.py:FUNCTION".

        Raises:
            UnknownNameError: there is no such slot, file or function. OptionError: a slot is filled twice. PieceError:
            the file cannot be imported.
        """
        self.paths: dict[str, Path] = {}
        self.calls: Counter[str] = Counter()
        self._functions: dict[str, Callable[..., Any]] = {}
        modules: dict[Path, ModuleType] = {}
        for spec in specs:
            slot, path, name = _parse(spec)
            if slot in self.paths:
                raise OptionError(f"expected one function for {slot!r}, got two; do: leave out one --use")
            module = modules.get(path) or modules.setdefault(path, _import(path))
            function = getattr(module, name, None)
            if not callable(function):
                raise UnknownNameError(f"expected a function {name!r} in {path}, got none; do: check the name")
            self.paths[slot], self._functions[slot] = path, function

    def __contains__(self, slot: str) -> bool:
        return slot in self._functions

    def _call(self, slot: str, *args: Any, **kwargs: Any) -> Any:
        self.calls[slot] += 1
        path = self.paths[slot]
        try:
            return self._functions[slot](*args, **kwargs)
        except Exception as error:  # the boundary to the user's code
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
            where = f" in line {frames[-1].lineno}, {frames[-1].line}" if frames else ""
            raise PieceError(f"{path.name}: {slot} raised {type(error).__name__}: {error}{where}") from error

    def _numbers(self, slot: str, value: Any, like: Tensor) -> Tensor:
        """``value`` as a tensor of the shape, type and device of ``like``."""
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = None
        if array is None or array.shape != tuple(like.shape):
            got = type(value).__name__ if array is None else f"shape {array.shape}"
            raise PieceError(f"{self.paths[slot].name}: expected {slot} to give {tuple(like.shape)} numbers, got {got}")
        return torch.from_numpy(array).to(like)

    def _pair(self, slot: str, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, tuple) or len(value) != 2:
            raise PieceError(
                f"{self.paths[slot].name}: expected {slot} to return a tuple of two, got {type(value).__name__}; do: "
                f"write it as {SLOTS[slot].signature}"
            )
        return value

    def check_used(self, algorithm: str) -> None:
        """Raises OptionError: ``algorithm``, which has made an update, called one of the functions not once."""
        for slot in self._functions:
            if not self.calls[slot]:
                raise OptionError(
                    f"expected --use of what {algorithm} calls, but it never called {slot!r}; do: train with an "
                    "algorithm that has it (search-gym exercise list), or leave it out"
                )

    def keep(self, folder: Path) -> None:
        """Copy the files to ``folder``, so that the run can be told from its own folder."""
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
        for path in set(self.paths.values()):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)

    # The mathematics of an update

    def gae(
        self, rewards: Tensor, values: Tensor, loss_mask: Tensor, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        """`losses.gae`, or the user's."""
        if "gae" not in self:
            return losses.gae(rewards, values, loss_mask, gamma, lam)
        value = self._call("gae", *map(_array, (rewards, values, loss_mask)), gamma, lam)
        advantages, returns = self._pair("gae", value)
        return self._numbers("gae", advantages, rewards), self._numbers("gae", returns, rewards)

    def group_advantages(
        self, rewards: Tensor, group_ids: Tensor, *, normalize_std: bool = True, leave_one_out: bool = False
    ) -> Tensor:
        """`losses.group_advantages`, or the user's."""
        options = {"normalize_std": normalize_std, "leave_one_out": leave_one_out}
        if "group_advantages" not in self:
            return losses.group_advantages(rewards, group_ids, **options)
        value = self._call("group_advantages", _array(rewards), _array(group_ids), **options)
        return self._numbers("group_advantages", value, rewards)

    def ppo_policy_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        loss_mask: Tensor,
        clip_low: float,
        clip_high: float,
        *,
        weights: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`losses.ppo_policy_loss`, or the user's loss with the gradient that the user says it has."""
        loss, stats = losses.ppo_policy_loss(
            logprobs, old_logprobs, advantages, loss_mask, clip_low, clip_high, weights=weights
        )
        if "clipped_loss" not in self:
            return loss, stats
        given = map(_array, (logprobs, old_logprobs, advantages, loss_mask, weights))
        value, gradient = self._pair("clipped_loss", self._call("clipped_loss", *given, clip_low, clip_high))
        slope = self._numbers("clipped_loss", gradient, logprobs.detach())
        surface = (torch.where(slope != 0, logprobs, 0.0) * slope).sum()
        return surface - surface.detach() + self._numbers("clipped_loss", value, loss.detach()), stats

    # Rollouts

    def mask(
        self, rollouts: Sequence[Rollout], batch: RolloutBatch, score: Callable[[RolloutBatch], Any]
    ) -> RolloutBatch:
        """``batch`` with the user's loss mask. Tokens in it that nobody sampled count as sampled by the policy as it
        is: their old log-probabilities are those that ``score`` gives."""
        if "loss_mask" not in self:
            return batch
        loss_mask = torch.zeros_like(batch.loss_mask)
        for row, rollout in enumerate(rollouts):
            length = len(rollout.token_ids)
            spans = [(span.kind, span.start, span.stop) for span in rollout.spans]
            mask = np.asarray(self._call("loss_mask", spans, length))
            if mask.dtype != np.bool_ or mask.shape != (length,) or mask[0]:
                raise PieceError(
                    f"{self.paths['loss_mask'].name}: expected loss_mask to give ({length},) booleans, the first of "
                    f"them False because nothing precedes token 0, got dtype {mask.dtype} and shape {mask.shape}"
                )
            loss_mask[row, :length] = torch.from_numpy(mask)
        masked = replace(batch, loss_mask=loss_mask)
        scored = score(masked).logprobs
        old_logprobs = torch.where(batch.loss_mask, batch.old_logprobs, scored)
        return replace(masked, old_logprobs=torch.where(loss_mask, old_logprobs, 0.0))

    def install(self, envs: SearchVectorEnv, corpus: Path | None = None, *, with_reward: bool = True) -> None:
        """Give ``envs`` the user's reward and retriever; ``corpus`` is where documents are that no question set brings.

        Raises:
            OptionError: a retriever, and no documents; or two retrievers.
        """
        if "reward" in self and with_reward:
            envs.task = replace(envs.task, reward_fn=self._reward)
        retrievers = [slot for slot in ("bm25_scores", "search") if slot in self]
        if len(retrievers) > 1:
            raise OptionError(f"expected one retriever, got {' and '.join(retrievers)}; do: leave out one --use")
        if retrievers:
            questions = envs.task.questions
            documents = load_corpus(corpus) if corpus is not None else getattr(questions, "documents", ())
            if not documents:
                raise OptionError(
                    "expected documents for your retriever, got none; do: name a corpus with --env.corpus"
                )
            slot = retrievers[0]
            kind = StudentBM25 if slot == "bm25_scores" else StudentSearch
            retriever = kind(documents, lambda *args: self._call(slot, *args))
            envs.task = replace(envs.task, retriever=retriever)

    def _reward(self, outcome: Outcome) -> float:
        turns = [tuple(turn) for turn in outcome.turns]
        value = self._call("reward", outcome.answer, list(outcome.answers), turns, outcome.text)
        if not isinstance(value, (int, float, np.number, np.bool_)):
            raise PieceError(f"{self.paths['reward'].name}: expected reward to give a number, got {value!r:.100}")
        return float(value)

    # After an update

    def warnings(self, rows: Sequence[Mapping[str, Any]]) -> list[Alarm]:
        """An alarm, if the user's monitor sees in ``rows``, the metrics of all updates, that the last is the first bad
        one."""
        if "first_warning" not in self:
            return []
        names = {name for row in rows for name, value in row.items() if isinstance(value, (int, float))}
        metrics = {name: np.array([_number(row.get(name)) for row in rows]) for name in sorted(names)}
        index = self._call("first_warning", metrics)
        if index is None or int(index) != len(rows) - 1:
            return []
        update = int(rows[-1]["update"])
        return [Alarm("your warning", update, f"{self.paths['first_warning'].name} says that a collapse begins here")]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _array(x: Tensor) -> np.ndarray:
    """A copy, float64 unless it is of booleans or integers."""
    array = x.detach().cpu().numpy()
    return array.astype(np.float64 if array.dtype.kind == "f" else array.dtype)


def _parse(spec: str) -> tuple[str, Path, str]:
    """The slot, the file and the function that ``spec`` names."""
    target, _, name = spec.rpartition(":")
    slot, _, file = target.rpartition("=")
    slot = slot or name
    if slot not in SLOTS:
        raise UnknownNameError(
            f"expected FILE.py:FUNCTION whose function has the name of a slot, or SLOT=FILE.py:FUNCTION, got {spec!r}; "
            f"do: choose among the slots {', '.join(SLOTS)}"
        )
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UnknownNameError(f"expected a Python file, got {file!r}, which does not exist; do: check the path")
    return slot, path, name


def _import(path: Path) -> ModuleType:
    """The module in the file ``path``, which may import its neighbours."""
    name = f"used_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UnknownNameError(f"expected a Python file, got {path}; do: give its name a .py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the boundary to the user's code
        raise PieceError(f"{path} could not be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
