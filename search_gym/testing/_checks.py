"""The checks of advantage estimators and losses. Each is a public function; `check_advantages`, `check_loss` run all.

Every check takes a subject that returns (B, T) numbers for tokens, (B,) numbers for rows, or a scalar loss. Tokens
"receive" their own number, and from a scalar torch loss the gradients with respect to their log-probability, value and
entropy. Only sampled tokens are compared, in their order in the row, so that columns may move.

All raise `InvarianceError` when the subject fails, and `SubjectError` when it cannot be checked.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from search_gym.errors import OptionError
from search_gym.testing._batches import NUMBERS, Row, Settings, TokenBatch, collate, draw_batches, draw_numbers
from search_gym.testing._failures import InvarianceError, SubjectError
from search_gym.testing._subjects import Comparison, Result, Subject, evaluate

GROWTHS = (1, 3, 17)
_DEFAULT = Settings()


def check_advantages(estimator: Subject, settings: Settings = _DEFAULT, *, non_finite: bool = True) -> None:
    """Run every check that is for advantages, on a subject that returns (B, T) or (B,) numbers.

    Returns, KL penalties and whatever else a token receives are checked in the same way. ``non_finite=False`` leaves
    `check_non_finite_numbers` out, for code that masks by multiplying.
    """
    rng, rows = next(draw_batches(settings))
    if evaluate(estimator, collate(rows, rng), settings).scalar is not None:
        raise SubjectError("expected advantages of shape (B, T) or (B,), got a scalar; do: use check_loss for a loss")
    check_lengthening(estimator, settings)
    check_environment_numbers(estimator, settings)
    check_padding(estimator, settings)
    check_row_order(estimator, settings)
    if non_finite:
        check_non_finite_numbers(estimator, settings)


def check_loss(loss: Subject, settings: Settings = _DEFAULT, *, non_finite: bool = True) -> None:
    """Run every check that is for losses, on a subject that returns a differentiable scalar.

    It may be the loss of the policy, of the values, an entropy bonus, a KL term, or their sum, advantages and all.
    ``non_finite=False`` leaves `check_non_finite_numbers` out, for code that masks by multiplying.
    """
    check_environment_gradients(loss, settings)
    check_lengthening(loss, settings)
    check_environment_numbers(loss, settings)
    check_padding(loss, settings)
    check_row_order(loss, settings)
    if non_finite:
        check_non_finite_numbers(loss, settings)


def check_lengthening(subject: Subject, settings: Settings = _DEFAULT) -> None:
    """A prompt or an observation that grows by n tokens changes nothing that a sampled token receives.

    The new tokens carry ordinary numbers and no reward, and the batch keeps its width: padding makes room.
    """
    advice = (
        "let recursions, counts, means and positions run over the tokens where loss_mask is True, "
        "not over attention_mask or loss_mask | info_mask"
    )
    comparison = Comparison(subject, settings, advice)
    for rng, rows in draw_batches(settings):
        width = max(row.length for row in rows) + max(GROWTHS) + 1
        before = collate(rows, rng, width=width)
        result = comparison.baseline(before)
        for b, row in enumerate(rows):
            for index, span in enumerate(row.spans):
                for growth in GROWTHS if span.kind != "action" else ():
                    longer = (*rows[:b], row.lengthen(index, growth, rng), *rows[b + 1 :])
                    after = _with_padding_of(before, collate(longer, rng, width=width))
                    n = span.stop - span.start
                    change = f"{_span_name(row, index)} of row {b} grew from {n} to {n + growth} tokens"
                    comparison.compare(before, result, after, change)
    comparison.finish()


def check_environment_numbers(
    subject: Subject, settings: Settings = _DEFAULT, *, names: tuple[str, ...] = NUMBERS
) -> None:
    """Other numbers on the tokens of prompts and observations change nothing that a sampled token receives.

    One field of the batch changes at a time. ``names`` are the fields that are tried; rewards are among them, although
    a collector that puts none on an environment token makes it harmless to read them there.
    """
    unknown = sorted(set(names) - set(NUMBERS))
    if unknown:
        raise OptionError(f"expected names among {', '.join(NUMBERS)}, got {', '.join(unknown)}")
    advice = "select the sampled tokens with loss_mask before you read"
    comparison = Comparison(subject, settings, advice)
    for rng, rows in draw_batches(settings):
        before = collate(rows, rng, right=1)
        result = comparison.baseline(before)
        for name in names:
            # "Action" numbers, so that rewards are drawn too.
            other = draw_numbers(rng, before.loss_mask.size, is_action=True)[name].reshape(before.loss_mask.shape)
            after = _replace_where(before, before.attention_mask & ~before.loss_mask, {name: other})
            comparison.compare(before, result, after, f"the {name} of all prompt and observation tokens changed")
    comparison.finish()


def check_non_finite_numbers(subject: Subject, settings: Settings = _DEFAULT) -> None:
    """Huge numbers, infinities and NaN outside the sampled tokens, padding included, leave no trace.

    Neither in what sampled tokens receive nor as a gradient elsewhere: ``x * loss_mask`` fails, since 0 * nan is nan,
    and so does a ``where`` after a function whose gradient is infinite, since backward multiplies by it.
    """
    advice = "put torch.where(loss_mask, x, 0) before the arithmetic; multiplying by a mask keeps nan and inf"
    comparison = Comparison(subject, settings, advice)
    for rng, rows in draw_batches(settings):
        before = collate(rows, rng, right=1)
        result = comparison.baseline(before)
        for number in (1e30, -1e30, np.inf, -np.inf, np.nan):
            filled = {name: np.full(before.loss_mask.shape, number) for name in NUMBERS}
            for names in (*((name,) for name in NUMBERS), NUMBERS):
                after = _replace_where(before, ~before.loss_mask, {name: filled[name] for name in names})
                what = names[0] if len(names) == 1 else "numbers"
                change = f"the {what} of all other tokens became {number:g}"
                changed = comparison.compare(before, result, after, change)
                _require_no_gradient_outside(changed, after, f" after {change}", advice)
    comparison.finish()


def check_environment_gradients(loss: Subject, settings: Settings = _DEFAULT) -> None:
    """The gradient with respect to log-probabilities, values and entropy is exactly 0 outside the sampled tokens.

    That it does not depend on those tokens either is for `check_environment_numbers` to find out.
    """
    if settings.framework != "torch":
        raise OptionError(f"expected framework 'torch', which has gradients, got {settings.framework!r}")
    is_informative = False
    for rng, rows in draw_batches(settings):
        batch = collate(rows, rng, left=1, right=1)
        result = evaluate(loss, batch, settings)
        if not result.gradients:
            got = "a number without a gradient" if result.scalar is not None else "one number for each row or token"
            raise SubjectError(f"expected a differentiable scalar from the loss, got {got}; do: return a scalar tensor")
        advice = "weigh each token's term by loss_mask before the sum"
        _require_no_gradient_outside(result, batch, "", advice)
        is_informative |= any(bool(gradient[batch.loss_mask].any()) for gradient in result.gradients.values())
    if not is_informative:
        raise SubjectError(
            "expected a gradient for some sampled token, got none; "
            "do: let the loss depend on logprobs, values or entropy, and not on detached copies of them"
        )


def check_padding(subject: Subject, settings: Settings = _DEFAULT) -> None:
    """Columns of padding, left, right or on both sides, change nothing, nor do rows that end at the last column.

    Padding carries ordinary numbers and no reward, as a model that scores it would give.
    """
    advice = "read nothing where attention_mask is False, divide by loss_mask.sum() and never by a tensor's width"
    comparison = Comparison(subject, settings, advice)
    for rng, rows in draw_batches(settings):
        before = collate(rows, rng)
        result = comparison.baseline(before)
        for left, right in ((0, 3), (3, 0), (5, 11)):
            change = f"the batch got {left} columns of padding on the left and {right} on the right"
            comparison.compare(before, result, collate(rows, rng, left=left, right=right), change)
        change = "the rows moved to the right end, so that all padding is on the left"
        comparison.compare(before, result, collate(rows, rng, align="right"), change)
    comparison.finish()


def check_row_order(subject: Subject, settings: Settings = _DEFAULT) -> None:
    """Rows in another order receive the same, each in its new place; ``group_ids`` move with their rows."""
    advice = "tell groups by group_ids, not by position, and give no row a weight by its number"
    comparison = Comparison(subject, settings, advice)
    for rng, rows in draw_batches(settings):
        before = collate(rows, rng)
        result = comparison.baseline(before)
        n = len(rows)
        for order in (np.arange(n)[::-1], rng.permutation(n), rng.permutation(n)):
            after = before.take(order)
            change = f"the rows were put into the order {order.tolist()} (rows are counted in the new order)"
            comparison.compare(after, result.take(order), after, change)
    comparison.finish()


def _require_no_gradient_outside(result: Result, batch: TokenBatch, circumstance: str, advice: str) -> None:
    for name, gradient in result.gradients.items():
        outside = np.argwhere((gradient != 0) & ~batch.loss_mask)  # nan differs from 0 too
        if len(outside):
            b, t = outside[0].tolist()
            writer = "observation" if batch.info_mask[b, t] else "prompt" if batch.attention_mask[b, t] else "padding"
            raise InvarianceError(
                f"expected the gradient with respect to {name} of {writer} token {t} of row {b} to be exactly 0, got "
                f"{gradient[b, t]:.6g}{circumstance}; do: {advice}",
                batch,
                batch,
            )


def _span_name(row: Row, index: int) -> str:
    """The prompt, or an observation by its number among those of its row."""
    span = row.spans[index]
    if span.kind == "prompt":
        return "the prompt"
    number = sum(s.kind == "observation" for s in row.spans[:index])
    return f"observation {number} (columns {span.start}:{span.stop})"


def _replace_where(batch: TokenBatch, mask: npt.NDArray[np.bool_], numbers: dict[str, np.ndarray]) -> TokenBatch:
    return replace(batch, **{name: np.where(mask, new, getattr(batch, name)) for name, new in numbers.items()})


def _with_padding_of(batch: TokenBatch, other: TokenBatch) -> TokenBatch:
    """``other``, whose padding carries what the same places of ``batch`` carry if they are padding there too."""
    both = ~batch.attention_mask & ~other.attention_mask
    numbers = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name in NUMBERS}
    return _replace_where(other, both, numbers)
