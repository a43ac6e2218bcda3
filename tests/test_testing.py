"""The span-invariance kit: the package's own mathematics passes, and each planted fault is caught by its check."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import losses
from agents.rollout import Rollout, collate
from search_gym import HFCodec, SearchEnv, SearchVectorEnv, TokenSequence, Transcript, testing
from search_gym.errors import OptionError, SearchGymError
from search_gym.testing import InvarianceError, Settings, SubjectError, TokenBatch
from tests.stubs import CODECS, QUESTIONS, EchoRetriever, env_options, hf_codec, make_env

ROOT = Path(__file__).parents[1]
CHECKS = {
    "lengthening": testing.check_lengthening,
    "numbers": testing.check_environment_numbers,
    "padding": testing.check_padding,
    "order": testing.check_row_order,
    "non-finite": testing.check_non_finite_numbers,
    "gradients": testing.check_environment_gradients,
}
NUMBERS = [f.name for f in fields(TokenBatch) if not f.name.endswith(("mask", "ids")) and f.name != "row_rewards"]


def failures(subject: testing.Subject, checks: set[str], options: Settings | None = None) -> set[str]:
    """Names of the ``checks`` that ``subject`` fails."""
    failed = set()
    for name in checks:
        try:
            CHECKS[name](subject, options or Settings())
        except InvarianceError:
            failed.add(name)
    return failed


# --- the batches that the checks try ---


def recorded(check: Callable[..., None], options: Settings) -> list[TokenBatch]:
    """Every batch that ``check`` shows to an estimator which passes it, as numpy."""
    seen: list[TokenBatch] = []

    def subject(batch: TokenBatch) -> Any:
        seen.append(TokenBatch(*(np.array(getattr(batch, f.name)) for f in fields(batch))))
        with np.errstate(all="ignore"):
            return np.where(batch.loss_mask, batch.rewards, 0.0)

    check(subject, options)
    return seen


def sampled(batch: TokenBatch) -> dict[tuple[int, str], list[float]]:
    """The numbers of each row's sampled tokens, in their order."""
    return {
        (b, name): getattr(batch, name)[b][batch.loss_mask[b]].tolist()
        for b in range(len(batch.group_ids))
        for name in NUMBERS
    }


def layout(batch: TokenBatch) -> list[str]:
    """Each row as a string of p(rompt), a(ction), o(bservation) and . (padding)."""
    kinds = np.select([batch.loss_mask, batch.info_mask, batch.attention_mask], ["a", "o", "p"], ".")
    return ["".join(row) for row in kinds]


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "gradients"])
@given(seed=st.integers(0, 2**31), group_size=st.integers(1, 3))
@settings(max_examples=8)
def test_batches_are_episodes_whatever_changes(name: str, seed: int, group_size: int) -> None:
    options = Settings(seed=seed, num_batches=2, group_size=group_size, framework="numpy")
    for batch in recorded(CHECKS[name], options):
        assert all(re.fullmatch(r"\.*p+(a+o+)*a*\.*", row) and "ao" in row for row in layout(batch))
        assert not (batch.loss_mask & batch.info_mask).any()
        assert len(batch.group_ids) >= 2
        assert set(np.unique(batch.group_ids, return_counts=True)[1]) == {group_size}
        on_sampled = np.where(batch.loss_mask, batch.rewards, 0.0)
        np.testing.assert_allclose(on_sampled.sum(axis=1), batch.row_rewards, rtol=0, atol=1e-12)
        assert all(np.isfinite(numbers).all() for numbers in sampled(batch).values())
        assert (batch.logprobs[batch.loss_mask] < 0).all()
        assert {batch.rewards.shape} == {getattr(batch, n).shape for n in NUMBERS}
        if name not in ("numbers", "non-finite"):
            assert not batch.rewards[~batch.loss_mask].any()


@pytest.mark.parametrize("name", ["lengthening", "numbers", "padding", "non-finite"])
def test_sampled_tokens_keep_their_numbers_while_the_rest_changes(name: str) -> None:
    seen = recorded(CHECKS[name], Settings(num_batches=1, framework="numpy"))
    first, again, *changed = seen
    assert layout(first) == layout(again)
    assert changed
    assert all(sampled(batch) == sampled(first) for batch in changed)
    assert all((batch.group_ids == first.group_ids).all() for batch in changed)
    for before, batch in zip([first] * len(changed), changed, strict=True):
        same_layout = layout(batch) == layout(before)
        assert same_layout == (name in ("numbers", "non-finite"))
        if same_layout:
            assert any(not np.array_equal(getattr(batch, n), getattr(before, n)) for n in NUMBERS)


def test_lengthening_grows_every_prompt_and_observation_and_moves_nothing_else() -> None:
    first, _, *changed = recorded(testing.check_lengthening, Settings(num_batches=1, framework="numpy"))
    rows = layout(first)
    spans = [(b, m.start()) for b, row in enumerate(rows) for m in re.finditer("p+|o+", row)]
    grown = []
    for batch in changed:
        assert {len(row) for row in layout(batch)} == {len(rows[0])}
        (b,) = [b for b, row in enumerate(layout(batch)) if row != rows[b]]
        old, new = (re.findall(r"p+|a+|o+", row) for row in (rows[b], layout(batch)[b]))
        ((index, growth),) = [
            (i, len(y) - len(x)) for i, (x, y) in enumerate(zip(old, new, strict=True)) if len(x) != len(y)
        ]
        grown.append((b, sum(map(len, old[:index])), growth))
    assert grown == [(*span, growth) for span in spans for growth in (1, 3, 17)]


def test_non_finite_numbers_reach_every_field_alone_and_together() -> None:
    first, _, *changed = recorded(testing.check_non_finite_numbers, Settings(num_batches=1, framework="numpy"))
    outside = ~first.loss_mask
    found = [(tuple(n for n in NUMBERS if not np.array_equal(getattr(b, n), getattr(first, n))), b) for b in changed]
    assert [names for names, _ in found] == [*((n,) for n in NUMBERS), tuple(NUMBERS)] * 5
    filled = [{float(x) for n in names for x in getattr(b, n)[outside]} for names, b in found]
    assert [len(numbers) for numbers in filled if not any(map(np.isnan, numbers))] == [1] * (4 * (len(NUMBERS) + 1))
    assert {x for numbers in filled for x in numbers if not np.isnan(x)} == {1e30, -1e30, np.inf, -np.inf}


def test_environment_numbers_change_on_all_prompts_and_observations_and_nowhere_else() -> None:
    first, _, *changed = recorded(testing.check_environment_numbers, Settings(num_batches=1, framework="numpy"))
    environment = first.attention_mask & ~first.loss_mask
    assert len(changed) == len(NUMBERS)
    for name, batch in zip(NUMBERS, changed, strict=True):
        for other in NUMBERS:
            differs = getattr(batch, other) != getattr(first, other)
            assert differs.tolist() == (environment if other == name else np.zeros_like(environment)).tolist()


def test_padding_goes_to_both_sides_and_rows_to_the_right_end() -> None:
    first, _, *changed = recorded(testing.check_padding, Settings(num_batches=1, framework="numpy"))
    rows = layout(first)
    expected = [["." * left + row + "." * right for row in rows] for left, right in ((0, 3), (3, 0), (5, 11))]
    assert [layout(batch) for batch in changed[:-1]] == expected
    assert layout(changed[-1]) == [row.rstrip(".").rjust(len(row), ".") for row in rows]


def test_every_row_has_padding_where_numbers_are_not_finite() -> None:
    for batch in recorded(testing.check_non_finite_numbers, Settings(num_batches=2, framework="numpy")):
        assert all(row.endswith(".") for row in layout(batch))


def test_the_same_seed_gives_the_same_batches() -> None:
    one, same, other = (recorded(testing.check_padding, Settings(seed=seed, framework="numpy")) for seed in (3, 3, 4))
    assert [sampled(batch) for batch in one] == [sampled(batch) for batch in same]
    assert [layout(batch) for batch in one] == [layout(batch) for batch in same]
    assert [layout(batch) for batch in one] != [layout(batch) for batch in other]


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_a_subject_may_write_into_what_it_gets(framework: Any) -> None:
    def subject(batch: TokenBatch) -> Any:
        result = batch.rewards * batch.loss_mask
        with torch.no_grad():
            for f in fields(batch):
                getattr(batch, f.name)[...] = 0
        return result

    testing.check_advantages(subject, Settings(framework=framework), non_finite=False)


# --- the package's own mathematics ---

HYPERPARAMETERS = {"gamma": 0.9, "lam": 0.8, "clip_low": 0.05, "clip_high": 0.06, "clip": 0.2, "coef": 0.1}
PER_ROW = {"rewards": "row_rewards", "per_row": "row_rewards"}
RENAMED = {"x": "values", "mask": "loss_mask"}
# They mask a KL estimate that needs finite numbers everywhere.
FINITE_ONLY = {"kl_loss"}


def own_functions() -> dict[str, Callable[..., Any]]:
    return {
        name: function
        for name, function in vars(losses).items()
        if inspect.isfunction(function) and function.__module__ == losses.__name__ and not name.startswith("_")
    }


def call_by_name(function: Callable[..., Any], batch: TokenBatch, aggregation: Any = None) -> dict[str, Any]:
    """All tensors that ``function`` returns from the fields of ``batch`` that have its parameters' names."""
    arguments = {} if aggregation is None else {"weights": losses.token_weights(batch.loss_mask, aggregation)}
    for name, parameter in inspect.signature(function).parameters.items():
        is_per_row = re.search(r"""['"] ?B['"]""", str(parameter.annotation)) is not None
        source = PER_ROW.get(name, name) if is_per_row else RENAMED.get(name, name)
        if source in {f.name for f in fields(batch)}:
            arguments[name] = getattr(batch, source)
        elif name in HYPERPARAMETERS:
            arguments[name] = HYPERPARAMETERS[name]
        else:
            assert parameter.default is not parameter.empty, f"{name} is no field of TokenBatch: add it to the tables"
    return dict(_tensors("", function(**arguments)))


def _tensors(name: str, result: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(result, torch.Tensor):
        yield name, result
    else:
        for key, part in result.items() if isinstance(result, dict) else enumerate(result):
            yield from _tensors(f"{name}/{key}", part)


def own_cases() -> Iterator[Any]:
    for name, function in own_functions().items():
        yield pytest.param(name, None, id=name)
        if "weights" in inspect.signature(function).parameters:
            yield pytest.param(name, "sequence-mean", id=f"{name}, weighted", marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "aggregation"), list(own_cases()))
def test_every_function_of_the_package_passes(name: str, aggregation: str | None) -> None:
    """Advantages, returns, losses with their gradients, and every statistic."""
    function, options, outputs = own_functions()[name], Settings(num_batches=3), {}

    def record(batch: TokenBatch) -> Any:
        outputs.update(call_by_name(function, batch, aggregation))
        return batch.logprobs[batch.loss_mask].sum()

    testing.check_environment_gradients(record, Settings(num_batches=1))
    assert outputs
    for key, output in outputs.items():

        def subject(batch: TokenBatch, key: str = key) -> Any:
            return call_by_name(function, batch, aggregation)[key]

        if output.ndim:
            testing.check_advantages(subject, options, non_finite=name not in FINITE_ONLY)
        elif output.requires_grad:
            testing.check_loss(subject, options, non_finite=name not in FINITE_ONLY)
        else:
            assert failures(subject, CHECKS.keys() - {"gradients"}, options) == set(), key


def advantages(batch: TokenBatch, gamma: float = 0.9, lam: float = 0.8) -> Any:
    return losses.gae(batch.rewards, batch.values, batch.loss_mask, gamma, lam)[0]


def reference_advantages(batch: TokenBatch, gamma: float, lam: float) -> Any:
    """Search-R1: the recursion runs over all response tokens."""
    return losses.gae(batch.rewards, batch.values, batch.loss_mask | batch.info_mask, gamma, lam)[0]


def policy_loss(batch: TokenBatch, weights: Any) -> Any:
    return losses.ppo_policy_loss(batch.logprobs, batch.old_logprobs, weights, batch.loss_mask, 0.2, 0.2)[0]


@given(seed=st.integers(0, 2**31), group_size=st.integers(1, 4))
@settings(max_examples=4)
def test_a_whole_objective_passes_with_any_seed(seed: int, group_size: int) -> None:
    def objective(batch: TokenBatch) -> Any:
        scale = losses.masked_whiten(advantages(batch).detach(), batch.loss_mask)
        values = losses.value_loss(batch.values, batch.old_values, batch.returns, batch.loss_mask, 0.2)[0]
        logprobs, ref_logprobs = (torch.where(batch.loss_mask, x, 0.0) for x in (batch.logprobs, batch.ref_logprobs))
        penalty = losses.masked_mean(losses.kl_penalty(logprobs, ref_logprobs), batch.loss_mask)
        entropy = losses.masked_mean(batch.entropy, batch.loss_mask)
        return policy_loss(batch, scale) + 0.5 * values + 0.1 * penalty - 0.01 * entropy

    testing.check_loss(objective, Settings(seed=seed, num_batches=2, group_size=group_size))


def sequence_mean(batch: TokenBatch, x: Any) -> Any:
    return where(batch, x).sum(1) / batch.loss_mask.sum(1)


SEQUENCE_LOSSES = {
    "mean of sequence means": lambda b: sequence_mean(b, surrogate(b)).mean(),
    "sums by a constant (Dr. GRPO, arXiv 2503.20783)": lambda b: surrogate(b).sum(1).mean() / 512,
    "one ratio for a sequence (GSPO, arXiv 2507.18071)": lambda b: (
        -(sequence_mean(b, where(b, b.logprobs) - where(b, b.old_logprobs)).exp() * b.row_rewards).mean()
    ),
    "leave-one-out inside (RLOO, arXiv 2402.14740)": lambda b: policy_loss(
        b, losses.group_advantages(b.row_rewards, b.group_ids, leave_one_out=True)[:, None].expand(b.values.shape)
    ),
}


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_losses_over_sequences_pass(name: str) -> None:
    testing.check_loss(SEQUENCE_LOSSES[name], Settings(num_batches=3))


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 1.0), (1.0, 0.9), (0.99, 0.95)])
def test_the_reference_depends_on_the_length_of_documents_unless_nothing_is_discounted(
    gamma: float, lam: float
) -> None:
    def subject(batch: TokenBatch) -> Any:
        return reference_advantages(batch, gamma, lam)

    assert failures(subject, {"lengthening", "numbers", "padding", "order"}) == {"lengthening", "numbers"}
    with pytest.raises(InvarianceError, match=r"what sampled token \d+ of row 0 .* after observation 0 .* grew from"):
        testing.check_advantages(subject)


def test_where_the_reference_agrees() -> None:
    """With gamma = lam = 1 and before whitening it only reads rewards that no collector puts on an observation."""

    def subject(batch: TokenBatch) -> Any:
        return reference_advantages(batch, 1.0, 1.0)

    assert failures(subject, {"lengthening", "padding", "order"}) == set()
    with pytest.raises(InvarianceError, match="after the rewards of all prompt and observation tokens changed"):
        testing.check_environment_numbers(subject)
    others = tuple(name for name in NUMBERS if name != "rewards")
    testing.check_environment_numbers(subject, names=others)

    def whitened(batch: TokenBatch) -> Any:
        return losses.masked_whiten(subject(batch), batch.loss_mask | batch.info_mask)

    assert failures(whitened, {"lengthening"}) == {"lengthening"}
    own = lambda batch: losses.masked_whiten(advantages(batch, 1.0, 1.0), batch.loss_mask)  # noqa: E731
    testing.check_advantages(own)


# --- planted faults ---


def where(batch: TokenBatch, x: Any) -> Any:
    return torch.where(batch.loss_mask, x, 0.0)


def position_weights(batch: TokenBatch) -> Any:
    position = (batch.attention_mask.cumsum(1) - 1) * batch.loss_mask
    return where(batch, batch.advantages) * 0.9**position


def count_of(batch: TokenBatch) -> Any:
    return batch.loss_mask.sum().clamp_min(1)


def surrogate(batch: TokenBatch) -> Any:
    return -where(batch, batch.logprobs) * where(batch, batch.advantages)


ADVANTAGE_FAULTS = {
    "whitened over the response": (
        lambda b: losses.masked_whiten(where(b, b.advantages), b.loss_mask | b.info_mask),
        {"lengthening"},
    ),
    "discounted by position": (position_weights, {"lengthening"}),
    "reads rewards of documents": (
        lambda b: torch.where(b.attention_mask, b.rewards, 0.0).flip(1).cumsum(1).flip(1),
        {"numbers", "non-finite"},
    ),
    "scaled by the width": (lambda b: where(b, b.advantages) / b.loss_mask.shape[1], {"padding"}),
    "looks at the last column": (
        lambda b: where(b, b.advantages) + b.values[:, -1:].detach(),
        {"padding", "non-finite"},
    ),
    "starts in column 0": (
        lambda b: where(b, b.advantages) * b.attention_mask[:, :1],
        {"padding"},
    ),
    "row 0 as the baseline": (lambda b: b.row_rewards - b.row_rewards[0], {"order"}),
    "groups by position": (
        lambda b: (b.row_rewards.view(-1, 2) - b.row_rewards.view(-1, 2).mean(1, keepdim=True)).flatten(),
        {"order"},
    ),
    "multiplies by the mask": (
        lambda b: (b.advantages * b.loss_mask).flip(1).cumsum(1).flip(1),
        {"non-finite"},
    ),
    "no mask at all": (
        lambda b: (b.rewards - b.values).flip(1).cumsum(1).flip(1),
        {"lengthening", "numbers", "padding", "non-finite"},
    ),
}

LOSS_FAULTS = {
    "a straight-through gradient": (
        lambda b: surrogate(b).sum() / count_of(b) + (b.values.nan_to_num() - b.values.nan_to_num().detach()).sum(),
        {"gradients", "non-finite"},
    ),
    "sequence means by all tokens": (
        lambda b: (surrogate(b).sum(1) / b.attention_mask.sum(1)).mean(),
        {"lengthening"},
    ),
    "a sequence ratio by response length": (
        lambda b: (
            -(
                (where(b, b.logprobs) - where(b, b.old_logprobs)).sum(1).div((b.loss_mask | b.info_mask).sum(1)).exp()
            ).mean()
        ),
        {"lengthening"},
    ),
    "mean over the width": (lambda b: surrogate(b).mean(), {"padding"}),
    "rows weighed by number": (
        lambda b: (surrogate(b).sum(1) * torch.arange(len(b.group_ids))).sum(),
        {"order"},
    ),
    "multiplies by the mask": (
        lambda b: -(b.logprobs * b.advantages * b.loss_mask).sum() / count_of(b),
        {"non-finite"},
    ),
    "where after the exponential": (
        lambda b: -where(b, (b.logprobs - b.old_logprobs).exp()).sum() / count_of(b),
        {"non-finite"},
    ),
    "no mask at all": (
        lambda b: -((b.logprobs - b.old_logprobs).exp() * b.advantages).mean(),
        {"gradients", "lengthening", "numbers", "padding", "non-finite"},
    ),
    "values of documents as a baseline": (
        lambda b: (
            -where(b, b.logprobs * (b.returns - torch.where(b.info_mask, b.values, 0.0).sum(1, True)).detach()).sum()
        ),
        {"lengthening", "numbers", "non-finite"},
    ),
    "an entropy bonus over the response": (
        lambda b: surrogate(b).sum() / count_of(b) - losses.masked_mean(b.entropy, b.loss_mask | b.info_mask),
        {"gradients", "lengthening", "numbers", "non-finite"},
    ),
}


@pytest.mark.parametrize("name", ADVANTAGE_FAULTS)
def test_a_fault_of_advantages_is_caught_by_the_check_that_is_for_it(name: str) -> None:
    subject, expected = ADVANTAGE_FAULTS[name]
    assert failures(subject, CHECKS.keys() - {"gradients"}) == expected
    with pytest.raises(InvarianceError):
        testing.check_advantages(subject)
    if expected == {"non-finite"}:
        testing.check_advantages(subject, non_finite=False)


@pytest.mark.parametrize("name", LOSS_FAULTS)
def test_a_fault_of_a_loss_is_caught_by_the_check_that_is_for_it(name: str) -> None:
    subject, expected = LOSS_FAULTS[name]
    assert failures(subject, set(CHECKS)) == expected
    with pytest.raises(InvarianceError):
        testing.check_loss(subject)
    if expected == {"non-finite"}:
        testing.check_loss(subject, non_finite=False)


def test_every_check_has_a_fault_that_it_alone_catches_or_names() -> None:
    caught = [expected for _, expected in (*ADVANTAGE_FAULTS.values(), *LOSS_FAULTS.values())]
    assert {name for expected in caught if len(expected) == 1 for name in expected} == {
        "lengthening", "padding", "order", "non-finite",
    }  # fmt: skip
    # A number or a gradient that leaks when it is finite leaks when it is not.
    assert [{"numbers", "non-finite"} in caught, {"gradients", "non-finite"} in caught] == [True, True]


@pytest.mark.parametrize("seed", range(5))
def test_faults_are_caught_whatever_the_seed(seed: int) -> None:
    for faults in (ADVANTAGE_FAULTS, LOSS_FAULTS):
        for subject, expected in faults.values():
            assert failures(subject, expected - {"non-finite"}, Settings(seed=seed)) == expected - {"non-finite"}


def test_invariance_is_not_correctness() -> None:
    """A recursion that stops at every document: nothing before it receives the reward, whatever its length."""

    def stops(batch: TokenBatch) -> Any:
        mask = batch.loss_mask
        rewards, values = where(batch, batch.rewards), where(batch, batch.values)
        running, next_value, result = torch.zeros(len(mask)), torch.zeros(len(mask)), torch.zeros(mask.shape)
        for t in reversed(range(mask.shape[1])):
            running = torch.where(mask[:, t], rewards[:, t] + next_value - values[:, t] + running, 0.0)
            next_value, result[:, t] = values[:, t], running
        return result

    testing.check_advantages(stops)


# --- what a failure says ---


def test_the_message_holds_the_numbers_of_the_two_batches_it_carries() -> None:
    def subject(batch: TokenBatch) -> Any:
        return reference_advantages(batch, 0.9, 1.0)

    with pytest.raises(InvarianceError) as caught:
        testing.check_lengthening(subject)
    found = re.search(
        r"sampled token (\d+) of row (\d+) \(column (\d+)\) receives to stay the same, got (\S+) before and (\S+) "
        r"after observation (\d+) \(columns (\d+):(\d+)\) of row (\d+) grew from (\d+) to (\d+) tokens; do: let",
        str(caught.value),
    )
    assert found is not None
    token, row, column, before, after, observation, start, stop, grown_row, old, new = map(float, found.groups())
    b, k = int(row), int(token)
    batches = [caught.value.before, caught.value.after]
    results = []
    for batch in batches:
        assert batch is not None
        tensors = TokenBatch(*(torch.from_numpy(getattr(batch, f.name)) for f in fields(batch)))
        results.append(subject(tensors)[b][tensors.loss_mask[b]][k].item())
    assert results == pytest.approx([before, after], rel=1e-5)
    layouts = [layout(batch)[int(grown_row)] for batch in batches if batch is not None]
    assert np.flatnonzero(batches[0].loss_mask[b])[k] == column  # type: ignore[union-attr]
    spans = [list(re.finditer("o+", text))[int(observation)].span() for text in layouts]
    assert spans == [(start, stop), (start, start + new)]
    assert stop - start == old


def test_the_largest_difference_is_the_one_that_is_named() -> None:
    """Every sampled token shifts by the number of document tokens, token 1 of each row a hundred times as much."""

    def subject(batch: TokenBatch) -> Any:
        order = batch.loss_mask.cumsum(1) - 1
        return batch.info_mask.sum() * torch.where(order == 1, 100.0, 1.0).double()

    with pytest.raises(InvarianceError, match="sampled token 1 of row 0"):
        testing.check_lengthening(subject)


def test_gradients_say_who_wrote_the_token() -> None:
    for mask, writer in (("info_mask", "observation"), ("attention_mask", "prompt")):
        with pytest.raises(InvarianceError, match=rf"respect to values of {writer} token \d+ of row 0 to be exactly 0"):
            testing.check_environment_gradients(lambda b, m=mask: b.values[getattr(b, m)].sum())
    with pytest.raises(InvarianceError, match=r"respect to entropy of padding token 0 of row 0 .* got 1; do: weigh"):
        testing.check_environment_gradients(lambda b: b.entropy.sum())


def test_errors_are_of_the_package_and_of_the_standard_library() -> None:
    assert issubclass(InvarianceError, SearchGymError)
    assert issubclass(InvarianceError, AssertionError)
    assert issubclass(SubjectError, SearchGymError)
    assert issubclass(SubjectError, TypeError)


def test_rounding_is_no_failure_and_the_tolerance_is_a_choice() -> None:
    def noisy(batch: TokenBatch) -> Any:
        return where(batch, batch.advantages) + 1e-7 * batch.attention_mask.sum()

    testing.check_advantages(noisy)
    with pytest.raises(InvarianceError):
        testing.check_lengthening(noisy, Settings(tolerance=1e-9))
    testing.check_advantages(lambda b: advantages(b).float())


# --- what cannot be checked ---


@pytest.mark.parametrize(
    ("check", "subject", "message"),
    [
        (testing.check_loss, lambda b: (b.logprobs.sum(), {}), "expected a torch tensor .* got tuple; do: pick one"),
        (testing.check_advantages, lambda b: 1.0, "expected a torch tensor .* got float"),
        (
            testing.check_advantages,
            lambda b: b.logprobs.sum(),
            r"shape \(B, T\) or \(B,\), got a scalar; do: use check",
        ),
        (testing.check_loss, lambda b: b.advantages, "differentiable scalar .* one number for each row or token"),
        (testing.check_loss, lambda b: b.advantages.sum(), "differentiable scalar .* a number without a gradient"),
        (testing.check_loss, lambda b: 0 * where(b, b.logprobs).sum(), "a gradient for some sampled token, got none"),
        (
            testing.check_advantages,
            lambda b: 0 * b.advantages,
            "numbers other than 0 for sampled tokens, got none in 6",
        ),
        (testing.check_advantages, lambda b: b.advantages[:, :1], r"shape \(2, \d+\) or \(2,\) .* got shape \(2, 1\)"),
        (testing.check_advantages, lambda b: b.advantages / 0, "finite numbers from an ordinary batch of 2 rows, got"),
        (testing.check_advantages, lambda b: torch.rand_like(b.values), "the same whenever the batch is the same"),
    ],
)
def test_a_subject_that_cannot_be_checked(check: Any, subject: testing.Subject, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        check(subject)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(num_batches=0), "num_batches and group_size >= 1, got 0, 2"),
        (lambda: Settings(framework="jax"), "expected framework 'torch' or 'numpy', got 'jax'"),  # type: ignore[arg-type]
        (lambda: Settings(tolerance=1.0), r"tolerance in \[0, 1\), got 1.0"),
        (lambda: testing.check_environment_numbers(advantages, names=("reward",)), "among rewards, .*, got reward"),
        (lambda: testing.check_loss(policy_loss, Settings(framework="numpy")), "expected framework 'torch', which has"),
        (lambda: testing.check_chunking(make_env, num_turns=0), "num_turns >= 1"),
        (lambda: testing.check_token_pipeline(tuple, special_ids=(64,)), r"special_ids in \[0, 64\)"),
    ],
)
def test_options_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


# --- numpy ---


def numpy_advantages(batch: TokenBatch, mask: Any) -> Any:
    result = np.zeros_like(batch.values)
    for b, row in enumerate(mask):
        next_value = running = 0.0
        for t in reversed(np.flatnonzero(row)):
            delta = batch.rewards[b, t] + 0.9 * next_value - batch.values[b, t]
            next_value, running = batch.values[b, t], delta + 0.9 * 0.8 * running
            result[b, t] = running
    return result


def test_numpy_estimators() -> None:
    options = Settings(framework="numpy")
    testing.check_advantages(lambda b: numpy_advantages(b, b.loss_mask), options)
    testing.check_advantages(lambda b: b.row_rewards - b.row_rewards.mean(), options)
    with pytest.raises(InvarianceError, match="observation 0"):
        testing.check_advantages(lambda b: numpy_advantages(b, b.loss_mask | b.info_mask), options)
    testing.check_padding(lambda b: b.logprobs[b.loss_mask].mean(), options)
    with pytest.raises(SubjectError, match=r"expected a numpy array or a number .* got Tensor"):
        testing.check_padding(lambda b: torch.tensor(1.0), options)


def test_the_kit_is_imported_and_used_without_torch() -> None:
    program = (
        "import sys\nfrom search_gym.testing import Settings, check_advantages, check_token_pipeline\n"
        "check_advantages(lambda b: b.row_rewards, Settings(framework='numpy'))\n"
        "check_token_pipeline(lambda t: (t.token_ids, t.loss_mask))\n"
        "print(*sorted({'torch', 'transformers', 'agents'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    for name in testing.__all__:
        assert getattr(testing, name) is not None


# --- token pipelines ---


def roundtrip(codec: HFCodec) -> testing.TokenPipeline:
    """What the original does: decode a turn, and encode its text again."""

    def pipeline(transcript: Transcript) -> Any:
        ids, mask = [], []
        for span in transcript.spans:
            piece = transcript.token_ids[span.start : span.stop]
            again = codec.encode(codec.decode(piece)) if span.kind == "action" else piece
            ids.append(again)
            mask += [span.kind == "action"] * len(again)
        return np.concatenate(ids), mask

    return pipeline


def collated(transcript: Transcript) -> Any:
    """The way of `agents.rollout`: beside a longer rollout, padding and all."""
    longer = Transcript()
    longer.append("prompt", transcript.token_ids)
    longer.append("action", [3, 0, 3])
    batch = collate([rollout_of(longer), rollout_of(transcript)], pad_id=0)
    row = batch.attention_mask[1]
    return batch.token_ids[1][row], batch.loss_mask[1][row]


def rollout_of(transcript: Transcript) -> Rollout:
    mask = transcript.loss_mask
    return Rollout(
        question=QUESTIONS[0],
        question_index=0,
        token_ids=transcript.token_ids,
        spans=transcript.spans,
        loss_mask=mask,
        logprobs=np.zeros(int(mask.sum()), dtype=np.float32),
        reward=1.0,
        terminated=False,
        truncated=True,
        turns=(),
        num_searches=0,
    )


def test_own_collation_keeps_tokens_and_mask() -> None:
    testing.check_token_pipeline(collated)
    testing.check_token_pipeline(lambda t: (t.token_ids.tolist(), t.loss_mask.tolist()), special_ids=())
    testing.check_token_pipeline(lambda t: (torch.from_numpy(t.token_ids), torch.from_numpy(t.loss_mask)))


class LastChunk:
    """Trains on the last chunk of an action only, as it looks into how the transcript came about."""

    def __call__(self, transcript: Transcript) -> Any:
        ids, mask = transcript.token_ids, transcript.loss_mask
        return ids + len(transcript._pieces) - len(transcript.spans), mask


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (roundtrip(hf_codec()), r"expected the \d+ tokens of Transcript\(.*, got \d+; do: pass ids on|expected id"),
        (lambda t: (t.token_ids, t.token_ids != 0), "expected loss_mask False for token .* in prompt"),
        (lambda t: (t.token_ids, t.loss_mask & (t.token_ids != 0)), "expected loss_mask True for token .* in action"),
        (lambda t: (t.token_ids, t.loss_mask | t.info_mask), "expected loss_mask False .* in observation"),
        (lambda t: (t.token_ids[:100], t.loss_mask[:100]), r"tokens of Transcript.*, got 100; do: pass ids"),
        (lambda t: (t.token_ids[t.token_ids != 2], t.loss_mask[t.token_ids != 2]), "strip special tokens"),
        (lambda t: (t.token_ids, np.roll(t.loss_mask, -1)), "expected loss_mask"),
        (lambda t: (np.where(t.token_ids == 1, 2, t.token_ids), t.loss_mask), r"expected id 1 for token .* got 2"),
        (LastChunk(), "the same token_ids and loss_mask from the same transcript appended in other chunks"),
    ],
)
def test_pipelines_that_touch_tokens(pipeline: testing.TokenPipeline, message: str) -> None:
    with pytest.raises(InvarianceError, match=message):
        testing.check_token_pipeline(pipeline, vocab_size=400, max_length=256)


def test_pipelines_that_cannot_be_checked() -> None:
    with pytest.raises(SubjectError, match=r"expected \(token_ids, loss_mask\) from the pipeline, got ndarray"):
        testing.check_token_pipeline(lambda t: t.token_ids)  # type: ignore[arg-type, return-value]
    with pytest.raises(SubjectError, match=r"of one shape \(n,\), got \(\d+, 1\)"):
        testing.check_token_pipeline(lambda t: (t.token_ids[:, None], t.loss_mask))


# --- chunking ---


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("max_turns", [0, 3])
def test_own_environments_pass(codec: str, max_turns: int) -> None:
    options = env_options(
        codec=CODECS[codec](),
        retriever=EchoRetriever(),
        max_turns=max_turns,
        max_turn_tokens=40,
        max_context_tokens=1200,
    )
    testing.check_chunking(lambda: SearchEnv(**options), num_episodes=3)
    testing.check_chunking(lambda: SearchVectorEnv(3, **options), num_episodes=2)
    testing.check_chunking(lambda: SearchVectorEnv(3, **options), num_episodes=4, num_turns=2)


def test_environments_by_id_pass() -> None:
    testing.check_chunking(lambda: gym.make("search_gym/TinyWiki-v0"), num_episodes=2)
    testing.check_chunking(lambda: gym.make_vec("search_gym/TinyWiki-v0", num_envs=2), num_episodes=2)  # type: ignore[arg-type, return-value]


def test_own_tokens_can_be_played() -> None:
    codec = CODECS["byte"]()
    drawn: list[int] = []

    def turn(rng: np.random.Generator) -> Any:
        drawn.append(int(rng.integers(10)))
        return codec.encode(f"<search>{drawn[-1]}</search>")

    testing.check_chunking(make_env, turn, num_episodes=2, num_turns=5)
    assert len(drawn) == 10
    assert len(set(drawn)) > 1


class Faulty(gym.Wrapper):
    """A single environment with one planted fault."""

    def step(self, action: Any) -> Any:
        raise NotImplementedError

    @property
    def episode(self) -> Any:
        return self.env.get_wrapper_attr("episode")


class DropsTheRest(Faulty):
    """Says that it consumed the whole chunk, although the turn ended before."""

    def step(self, action: Any) -> Any:
        *result, info = self.env.step(action)
        return (*result, {**info, "num_consumed": len(action)})


class SpeaksTooOften(Faulty):
    """Observes something after every chunk of an open turn."""

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return (np.array([7]) if self.episode.is_turn_open else observation, *rest)


class PaysPerStep(Faulty):
    """Takes a little for every step."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, float(reward) - 0.01, *rest


class HidesTheEnd(Faulty):
    """Truncates after 20 steps of any size."""

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated or self.steps >= 20, info


class CutsAtTheTag(Faulty):
    """Reads tags in each chunk alone: a closing tag that two chunks share is not seen."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        text = self.env.get_wrapper_attr("task").codec.decode(action)
        seen = "</answer>" in text
        return observation, float(reward) + 0.5 * seen, terminated, truncated, info


class Reencodes(Faulty):
    """Keeps a transcript of decoded and encoded text."""

    @property
    def transcript(self) -> Transcript:
        codec, true = self.env.get_wrapper_attr("task").codec, self.episode.transcript
        copy = Transcript()
        for span in true.spans:
            ids = true.token_ids[span.start : span.stop]
            copy.append(span.kind, codec.encode(codec.decode(ids)) if span.kind == "action" else ids)
        return copy

    def step(self, action: Any) -> Any:
        return self.env.step(action)


class SortsItsTranscript(Faulty):
    """Keeps actions apart from observations when it is given more than one token at a time."""

    def step(self, action: Any) -> Any:
        self.is_cut = len(action) == 1
        return self.env.step(action)

    @property
    def transcript(self) -> Transcript:
        true, copy = self.episode.transcript, Transcript()
        spans = true.spans if self.is_cut else sorted(true.spans, key=lambda span: "poa".index(span.kind[0]))
        for span in spans:
            copy.append(span.kind, true.token_ids[span.start : span.stop])
        return copy


class ForgetsObservations(Faulty):
    """Observes a token that its transcript does not hold."""

    def step(self, action: Any) -> Any:
        observation, *rest = self.env.step(action)
        return (np.append(observation, 5) if observation.size else observation, *rest)


class ConsumesNothing(Faulty):
    """Says that it consumed nothing, and goes on all the same."""

    def step(self, action: Any) -> Any:
        *result, info = self.env.step(action)
        return (*result, {**info, "num_consumed": 0})


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (DropsTheRest, "expected the transcript to hold the .* ids that were sampled"),
        (SpeaksTooOften, "expected the transcript to hold the .* ids that were observed"),
        (ForgetsObservations, "expected the transcript to hold the .* ids that were observed"),
        (SortsItsTranscript, r"to leave the same transcript in chunks of one token .* Transcript\(prompt"),
        (PaysPerStep, "expected slot 0 of episode 0 .* in chunks of one token and in chunks of"),
        (HidesTheEnd, "expected slot 0 of episode"),
        (CutsAtTheTag, "expected slot 0 of episode .* reward"),
        (Reencodes, "ids that were sampled, got .*append the ids themselves"),
        (ConsumesNothing, "expected between 1 and 1 tokens of a chunk to be consumed, got 0"),
    ],
)
def test_environments_that_depend_on_chunks(fault: type[Faulty], message: str) -> None:
    options = env_options(codec=hf_codec(), retriever=EchoRetriever(), max_turn_tokens=40)
    with pytest.raises(InvarianceError, match=message):
        testing.check_chunking(lambda: fault(SearchEnv(**options)))


class Closing(gym.Wrapper):
    """Counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        type(self).closed += 1
        super().close()


def test_the_environment_is_closed() -> None:
    testing.check_chunking(lambda: Closing(make_env()), num_episodes=1)
    assert Closing.closed == 1


class Bare(gym.Env[Any, Any]):
    """An environment of token sequences that has nothing else."""

    action_space = TokenSequence(8, 4, min_length=1)
    observation_space = TokenSequence(8, 4)
    info: dict[str, Any] = {}  # noqa: RUF012

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.array([1]), {}

    def step(self, action: Any) -> Any:
        return np.zeros(0, np.int64), 0.0, True, False, self.info


class Consuming(Bare):
    info = {"num_consumed": 1}  # noqa: RUF012


class WithOtherTranscript(Consuming):
    transcript = "p a o"


class Unseeded(Consuming):
    """Draws its prompt from a generator that no seed reaches, and keeps an honest record."""

    def __init__(self) -> None:
        self.prompts = iter(range(100))
        self.transcript = Transcript()

    def reset(self, **options: Any) -> Any:
        self.transcript = Transcript()
        prompt = np.array([next(self.prompts)])
        self.transcript.append("prompt", prompt)
        return prompt, {}

    def step(self, action: Any) -> Any:
        self.transcript.append("action", action[:1])
        return super().step(action)


class Discrete(Consuming):
    action_space = gym.spaces.Discrete(8)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Bare, r"expected info\['num_consumed'\], .* got \[\]"),
        (Consuming, "expected an environment with a transcript, got none"),
        (WithOtherTranscript, r"expected a search_gym.Transcript as transcript, got str"),
        (Unseeded, "expected the same prompt after reset"),
        (Discrete, r"expected an action space .* with a max_length, got Discrete\(8\)"),
        (lambda: 1, "expected a gymnasium.Env or a SearchVectorEnv from make_env, got int"),
    ],
)
def test_environments_that_cannot_be_checked(make: Any, message: str) -> None:
    with pytest.raises(SubjectError, match=message):
        testing.check_chunking(make, lambda rng: rng.integers(8, size=3))


def test_an_environment_without_a_codec_needs_tokens() -> None:
    with pytest.raises(SubjectError, match="expected sample_turn for an environment without a codec"):
        testing.check_chunking(Consuming)


# --- docs/testing.md ---

PAGE = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")[1:] if "```python" in section}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_page_says_what_the_code_does(title: str) -> None:
    """Each section's python blocks run in one namespace and print exactly its text blocks."""
    blocks = re.findall(r"```(python|text)\n(.*?)```", SECTIONS[title], flags=re.DOTALL)
    code = "\n".join(text for language, text in blocks if language == "python")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, f"docs/testing.md: {title}", "exec"), {"__name__": "testing_page"})
    assert output.getvalue() == "".join(text for language, text in blocks if language == "text")


def test_the_page_names_every_check() -> None:
    assert [name for name in testing.__all__ if name.startswith("check_") and f"`{name}`" not in PAGE] == []
    assert len(SECTIONS) >= 6
