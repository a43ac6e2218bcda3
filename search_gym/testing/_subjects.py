"""Calling a subject, and comparing what the sampled tokens receive from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from search_gym.plugins import require
from search_gym.testing._batches import Numbers, Settings, TokenBatch
from search_gym.testing._failures import InvarianceError, SubjectError

Subject = Callable[[TokenBatch], Any]

# What a model computes, and a loss therefore sends gradients to.
DIFFERENTIABLE = ("logprobs", "values", "entropy")


@dataclass(frozen=True, slots=True)
class Result:
    """What a subject made of a batch.

    One of ``tokens`` (B, T), ``rows`` (B,) and ``scalar`` () is there, the others are None. ``gradients`` (B, T) of a
    differentiable scalar go by the name of what it was differentiated by.
    """

    tokens: Numbers | None = None
    rows: Numbers | None = None
    scalar: Numbers | None = None
    gradients: Mapping[str, Numbers] = field(default_factory=dict)

    def take(self, rows: npt.NDArray[np.int64]) -> Result:
        """The result of the batch whose rows are ``rows`` (n,), had it been computed row by row."""
        return Result(
            None if self.tokens is None else self.tokens[rows],
            None if self.rows is None else self.rows[rows],
            self.scalar,
            {name: gradient[rows] for name, gradient in self.gradients.items()},
        )


def evaluate(subject: Subject, batch: TokenBatch, settings: Settings) -> Result:
    """Call ``subject`` on a copy of ``batch``; the kind of the result follows from its number of dimensions."""
    shape = batch.loss_mask.shape
    with np.errstate(all="ignore"):
        if settings.framework == "numpy":
            numbers, gradients = _call_numpy(subject, batch), {}
        else:
            numbers, gradients = _call_torch(subject, batch)
    if numbers.shape == ():
        return Result(scalar=numbers, gradients=gradients)
    if numbers.shape == shape:
        return Result(tokens=numbers)
    if numbers.shape == shape[:1]:
        return Result(rows=numbers)
    raise SubjectError(
        f"expected a scalar, or an array of shape {shape} or {shape[:1]} from a batch of {shape[0]} rows and "
        f"{shape[1]} columns, got shape {numbers.shape}; do: return one number for the batch, each row or each token"
    )


def _call_numpy(subject: Subject, batch: TokenBatch) -> Numbers:
    result = subject(TokenBatch(*(getattr(batch, field.name).copy() for field in fields(batch))))
    if not isinstance(result, (np.ndarray, np.generic, float, int)):
        raise SubjectError(_wrong_type(result, "a numpy array or a number"))
    return np.asarray(result, dtype=np.float64)


def _call_torch(subject: Subject, batch: TokenBatch) -> tuple[Numbers, dict[str, Numbers]]:
    torch = require("torch", extra="agents")
    tensors = {field.name: torch.tensor(getattr(batch, field.name)) for field in fields(batch)}
    leaves = {name: tensors[name].requires_grad_() for name in DIFFERENTIABLE}
    result = subject(TokenBatch(**tensors))
    if not isinstance(result, torch.Tensor):
        raise SubjectError(_wrong_type(result, "a torch tensor"))
    gradients: dict[str, Numbers] = {}
    if result.ndim == 0 and result.requires_grad:
        found = torch.autograd.grad(result, list(leaves.values()), allow_unused=True)
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            gradients[name] = gradient.numpy()
    return result.detach().cpu().double().numpy(), gradients


def _wrong_type(result: Any, expected: str) -> str:
    hint = "pick one of its elements" if isinstance(result, (tuple, list, dict)) else "convert it, or choose framework="
    return f"expected {expected} from the subject, got {type(result).__name__}; do: {hint} in a lambda"


class Comparison:
    """One subject under one check: compares its results and remembers whether they ever said anything."""

    def __init__(self, subject: Subject, settings: Settings, advice: str) -> None:
        self.subject = subject
        self.settings = settings
        self.advice = advice
        self._is_informative = False

    def baseline(self, batch: TokenBatch) -> Result:
        """What the subject makes of an unchanged batch.

        Raises:
            SubjectError: numbers that are not finite, or that differ from one call to the next.
        """
        result, again = (evaluate(self.subject, batch, self.settings) for _ in range(2))
        received, repeated = _received(result, batch), _received(again, batch)
        for (name, numbers, _), (_, others, _) in zip(received, repeated, strict=True):
            if not np.isfinite(numbers).all():
                raise SubjectError(
                    f"expected finite numbers from an ordinary batch of {len(batch.group_ids)} rows, got "
                    f"{numbers[~np.isfinite(numbers)][0]} as {name}; do: raise Settings.group_size if the subject "
                    "divides by a deviation within a group, else look for a division by zero"
                )
            if not np.array_equal(numbers, others):
                raise SubjectError(
                    f"expected {name} to be the same whenever the batch is the same, got another in a second call; "
                    "do: leave randomness and state out of the subject"
                )
            self._is_informative |= bool(numbers.any())
        return result

    def compare(self, before: TokenBatch, result: Result, after: TokenBatch, change: str) -> Result:
        """Require that the sampled tokens of ``after`` receive what those of ``before`` did.

        Raises:
            InvarianceError: they do not; ``change`` says how ``after`` came about.
        """
        changed = evaluate(self.subject, after, self.settings)
        pairs = zip(_received(result, before), _received(changed, after), strict=True)
        for (_, old, words), (_, new, _) in pairs:
            scale = np.abs(old).max() if len(old) > 1 else 1.0 + np.abs(old).max()
            with np.errstate(all="ignore"):
                difference = np.where(np.isfinite(new), np.abs(new - old), np.inf)
            worst = int(difference.argmax())
            if difference[worst] > self.settings.tolerance * scale + 1e-12:
                raise InvarianceError(
                    f"expected {words(worst)} to stay the same, got {old[worst]:.6g} before and "
                    f"{new[worst]:.6g} after {change}; do: {self.advice}",
                    before,
                    after,
                )
        return changed

    def finish(self) -> None:
        """Require that the subject was not 0 all along.

        Raises:
            SubjectError: it was, so that no check of it could have failed.
        """
        if not self._is_informative:
            raise SubjectError(
                f"expected numbers other than 0 for sampled tokens, got none in {self.settings.num_batches} batches; "
                "do: check that the subject uses the batch, and raise Settings.num_batches"
            )


def _received(result: Result, batch: TokenBatch) -> list[tuple[str, Numbers, Callable[[int], str]]]:
    """What the batch, its rows and its sampled tokens receive: its name, numbers (n,), and words for number i."""
    mask: npt.NDArray[np.bool_] = batch.loss_mask
    rows, columns = np.nonzero(mask)
    order = mask.cumsum(axis=1)[mask] - 1

    def at(i: int) -> str:
        return f"sampled token {order[i]} of row {rows[i]} (column {columns[i]})"

    received: list[tuple[str, Numbers, Callable[[int], str]]] = []
    if result.scalar is not None:
        received.append(("the scalar", result.scalar[None], lambda i: "the scalar result"))
    if result.rows is not None:
        received.append(("the result", result.rows, lambda i: f"what row {i} receives"))
    if result.tokens is not None:
        received.append(("the result", result.tokens[mask], lambda i: f"what {at(i)} receives"))
    for name, gradient in result.gradients.items():
        label = f"the gradient with respect to {name}"
        received.append((label, gradient[mask], lambda i, label=label: f"{label} of {at(i)}"))
    return received
