"""Losses against closed forms and slow references, and indifference to whatever lies outside the masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from agents import losses
from search_gym.errors import OptionError

EXACT = {"rtol": 0, "atol": 1e-12}


def masked_case(seed, batch=3, length=12):
    """Random float64 (B, T) numbers and a mask with at least one True per row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[:, length // 2] = True
    return mask, lambda: torch.randn(batch, length, generator=generator, dtype=torch.float64)


def poison(x, mask):
    """``x`` with NaN and infinities outside ``mask``."""
    bad = torch.tensor([math.nan, math.inf, -math.inf], dtype=x.dtype).repeat(x.numel() // 3 + 1)[: x.numel()]
    return torch.where(mask, x, bad.view_as(x))


def gae_reference(rewards, values, mask, gamma, lam):
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    for b in range(rewards.shape[0]):
        next_value = running = 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[b, t]:
                delta = rewards[b, t] + gamma * next_value - values[b, t]
                running = delta + gamma * lam * running
                next_value = values[b, t]
                advantages[b, t] = running
                returns[b, t] = running + values[b, t]
    return advantages, returns


class TestMaskedStatistics:
    def test_mean_of_the_selected(self):
        x = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 8.0, -math.inf]])
        mask = torch.tensor([[True, False, True], [False, True, False]])
        assert losses.masked_mean(x, mask).item() == 4.0
        assert losses.masked_mean(x, torch.zeros_like(mask)).item() == 0.0

    def test_whiten_uses_the_unbiased_variance(self):
        x = torch.tensor([1.0, 2.0, 3.0, math.nan], dtype=torch.float64)
        whitened = losses.masked_whiten(x, torch.tensor([True, True, True, False]))
        # mean 2, variance ((-1)^2 + 0 + 1^2) / (3 - 1) = 1
        torch.testing.assert_close(
            whitened, torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-8
        )

    @given(st.integers(0, 10_000))
    def test_whitened_has_mean_0_and_variance_1(self, seed):
        mask, draw = masked_case(seed)
        whitened = losses.masked_whiten(poison(5 + 3 * draw(), mask), mask)
        assert whitened[mask].mean().item() == pytest.approx(0, abs=1e-12)
        assert whitened[mask].var().item() == pytest.approx(1, abs=1e-6)
        assert torch.equal(whitened[~mask], torch.zeros_like(whitened[~mask]))

    def test_numbers_that_do_not_vary_whiten_to_zero(self):
        assert torch.equal(losses.masked_whiten(torch.full((4,), 7.0), torch.ones(4, dtype=torch.bool)), torch.zeros(4))
        single = torch.tensor([True, False, False, False])
        assert torch.equal(losses.masked_whiten(torch.full((4,), 7.0), single), torch.zeros(4))


class TestGae:
    @given(st.integers(0, 10_000), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
    def test_equals_the_loop(self, seed, length, gamma, lam):
        mask, draw = masked_case(seed, length=length)
        rewards, values = draw(), draw()
        expected = gae_reference(rewards, values, mask, gamma, lam)
        actual = losses.gae(poison(rewards, mask), poison(values, mask), mask, gamma, lam)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, **EXACT)

    def test_a_reward_at_the_end_with_gamma_and_lambda_1(self):
        values = torch.tensor([[0.5, 9.0, 0.25, 0.75]])
        mask = torch.tensor([[True, False, True, True]])
        advantages, returns = losses.gae(torch.tensor([[0.0, 9.0, 0.0, 1.0]]), values, mask, 1.0, 1.0)
        # Every sampled token shares the return 1; its advantage is 1 - V.
        assert torch.equal(returns, torch.tensor([[1.0, 0.0, 1.0, 1.0]]))
        assert torch.equal(advantages, torch.tensor([[0.5, 0.0, 0.75, 0.25]]))

    def test_lambda_0_is_the_one_step_error_over_sampled_tokens(self):
        values = torch.tensor([[0.5, 9.0, 0.25]])
        mask = torch.tensor([[True, False, True]])
        advantages, _ = losses.gae(torch.tensor([[0.0, 0.0, 1.0]]), values, mask, 0.5, 0.0)
        assert torch.equal(advantages, torch.tensor([[0.5 * 0.25 - 0.5, 0.0, 1.0 - 0.25]]))

    @given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
    def test_a_longer_observation_changes_nothing(self, seed, extra, gamma, lam):
        mask, draw = masked_case(seed, batch=1)
        rewards, values = draw(), draw()
        at = int((~mask[0]).nonzero()[0]) if (~mask).any() else 0

        def lengthen(x, fill):
            return torch.cat((x[:, :at], torch.full((1, extra), fill, dtype=x.dtype), x[:, at:]), dim=1)

        short = losses.gae(rewards, values, mask, gamma, lam)
        longer_mask = lengthen(mask, False)
        longer = losses.gae(lengthen(rewards, math.nan), lengthen(values, math.inf), longer_mask, gamma, lam)
        for a, e in zip(longer, short, strict=True):
            torch.testing.assert_close(a[longer_mask], e[mask], **EXACT)

    @given(st.integers(0, 10_000), st.floats(0.05, 0.95), st.booleans())
    def test_where_it_agrees_with_a_recursion_over_all_response_tokens(self, seed, factor, discount):
        mask, draw = masked_case(seed, batch=1)
        mask[0, 3:6] = torch.tensor([True, False, True])  # an observation between two sampled tokens
        last = int(mask[0].nonzero()[-1])
        response = torch.arange(mask.shape[1])[None] <= last
        rewards = torch.zeros_like(draw())
        rewards[0, last] = 1.0
        values = draw()
        undiscounted = losses.gae(rewards, values, mask, 1.0, 1.0)
        over_all = losses.gae(rewards, values, response, 1.0, 1.0)
        for a, e in zip(undiscounted, over_all, strict=True):
            torch.testing.assert_close(a[mask], e[mask], **EXACT)
        gamma, lam = (factor, 1.0) if discount else (1.0, factor)
        sampled, _ = losses.gae(rewards, values, mask, gamma, lam)
        everything, _ = losses.gae(rewards, values, response, gamma, lam)
        assert not torch.allclose(sampled[mask], everything[mask], **EXACT)

    def test_a_row_without_sampled_tokens(self):
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        advantages, returns = losses.gae(torch.ones(2, 3), torch.ones(2, 3), nothing, 0.9, 0.9)
        assert not advantages.any()
        assert not returns.any()


class TestGroupAdvantages:
    @given(
        st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0])), min_size=1, max_size=30),
        st.booleans(),
        st.booleans(),
    )
    def test_equals_the_loop(self, members, normalize_std, leave_one_out):
        ids = np.array([g for g, _ in members])
        rewards = np.array([r for _, r in members], dtype=np.float32).astype(np.float64)
        expected = np.empty(len(members))
        for i, (group, reward) in enumerate(zip(ids, rewards, strict=True)):
            in_group = ids == group
            others = rewards[in_group & (np.arange(len(ids)) != i)]
            if others.size == 0:
                expected[i] = reward
                continue
            baseline = others.mean() if leave_one_out else rewards[in_group].mean()
            expected[i] = (reward - baseline) / (rewards[in_group].std(ddof=1) + 1e-6 if normalize_std else 1.0)
        actual = losses.group_advantages(
            torch.tensor(rewards, dtype=torch.float32),
            torch.tensor(ids),
            normalize_std=normalize_std,
            leave_one_out=leave_one_out,
        )
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)

    def test_two_of_four_right(self):
        rewards, group = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.zeros(4, dtype=torch.int64)
        # mean 1/2, unbiased variance 4 * (1/2)^2 / 3 = 1/3
        expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
        torch.testing.assert_close(losses.group_advantages(rewards, group), expected * torch.tensor([1.0, -1, 1, -1]))
        loo = losses.group_advantages(rewards, group, normalize_std=False, leave_one_out=True)
        torch.testing.assert_close(loo, torch.tensor([2 / 3, -2 / 3, 2 / 3, -2 / 3]))

    @given(st.floats(-1, 1, width=32), st.integers(2, 9), st.booleans())
    def test_a_tied_group_gets_exactly_zero(self, reward, size, leave_one_out):
        rewards, group = torch.full((size,), reward), torch.full((size,), 5)
        assert not losses.group_advantages(rewards, group, leave_one_out=leave_one_out).any()


class TestPpoPolicyLoss:
    def test_the_four_corners_of_the_clip(self):
        ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.0]], dtype=torch.float64)
        advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0, 3.0]], dtype=torch.float64)
        mask = torch.ones(1, 5, dtype=torch.bool)
        logprobs = ratio.log().requires_grad_()
        loss, stats = losses.ppo_policy_loss(logprobs, torch.zeros_like(ratio), advantages, mask, 0.2, 0.28)
        # Clipped: a gain beyond 1.28 and a loss below 0.8. Never clipped: what makes the objective worse.
        terms = torch.tensor([-2 * 1.28, -2 * 0.5, 2 * 1.5, 2 * 0.8, -3.0], dtype=torch.float64)
        torch.testing.assert_close(loss, terms.mean(), **EXACT)
        assert stats["clip_fraction"].item() == pytest.approx(2 / 5)
        assert stats["ratio_mean"].item() == pytest.approx(1.0)
        assert stats["ratio_max"].item() == pytest.approx(1.5)
        expected_kl = float((ratio - 1 - ratio.log()).mean())
        assert stats["approx_kl"].item() == pytest.approx(expected_kl)
        loss.backward()
        gradient = torch.tensor([[0.0, -2 * 0.5, 2 * 1.5, 0.0, -3.0]], dtype=torch.float64) / 5
        torch.testing.assert_close(logprobs.grad, gradient, **EXACT)

    @given(st.integers(0, 10_000))
    def test_gradient_at_ratio_1_is_the_policy_gradient(self, seed):
        mask, draw = masked_case(seed)
        advantages, old = draw(), draw()
        logprobs = old.clone().requires_grad_()
        loss, stats = losses.ppo_policy_loss(logprobs, old, advantages, mask, 0.2, 0.2)
        loss.backward()
        torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages, 0.0) / mask.sum(), **EXACT)
        assert stats["clip_fraction"].item() == 0
        assert stats["approx_kl"].item() == 0

    @given(st.integers(0, 10_000))
    def test_what_is_not_sampled_does_not_matter(self, seed):
        mask, draw = masked_case(seed)
        logprobs, old, advantages = -draw().abs(), -draw().abs(), draw()
        clean = logprobs.clone().requires_grad_()
        expected, expected_stats = losses.ppo_policy_loss(clean, old, advantages, mask, 0.2, 0.2)
        expected.backward()
        dirty = poison(logprobs, mask).requires_grad_()
        loss, stats = losses.ppo_policy_loss(dirty, poison(old, mask), poison(advantages, mask), mask, 0.2, 0.2)
        loss.backward()
        assert torch.equal(loss, expected)
        assert stats == expected_stats
        assert torch.equal(dirty.grad, clean.grad)
        assert not dirty.grad[~mask].any()

    def test_padding_changes_nothing(self):
        mask, draw = masked_case(0)
        tensors = [draw() for _ in range(3)]
        expected, _ = losses.ppo_policy_loss(*tensors, mask, 0.2, 0.2)
        padded = [torch.nn.functional.pad(x, (4, 7), value=math.nan) for x in tensors]
        loss, _ = losses.ppo_policy_loss(*padded, torch.nn.functional.pad(mask, (4, 7)), 0.2, 0.2)
        torch.testing.assert_close(loss, expected, **EXACT)


class TestValueLoss:
    def test_clip_takes_the_larger_error(self):
        values = torch.tensor([[1.0, 0.1, 1.0]], dtype=torch.float64, requires_grad=True)
        old, returns = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64)
        mask = torch.ones(1, 3, dtype=torch.bool)
        loss, stats = losses.value_loss(values, old, returns, mask, 0.5)
        # Token 0 jumped past the clip to the target: the error of 0.5 counts and has no gradient.
        torch.testing.assert_close(loss, torch.tensor(0.5 * (0.25 + 0.81 + 4.0) / 3, dtype=torch.float64), **EXACT)
        assert stats["value_clip_fraction"].item() == pytest.approx(1 / 3)
        loss.backward()
        expected = torch.tensor([[0.0, -0.9, 2.0]], dtype=torch.float64) / 3
        torch.testing.assert_close(values.grad, expected, **EXACT)

    @given(st.integers(0, 10_000), st.sampled_from([None, 0.2, 0.5]))
    def test_what_is_not_sampled_does_not_matter(self, seed, clip):
        mask, draw = masked_case(seed)
        values, old, returns = draw(), draw(), draw()
        clean = values.clone().requires_grad_()
        expected, expected_stats = losses.value_loss(clean, old, returns, mask, clip)
        expected.backward()
        dirty = poison(values, mask).requires_grad_()
        loss, stats = losses.value_loss(dirty, poison(old, mask), poison(returns, mask), mask, clip)
        loss.backward()
        assert torch.equal(loss, expected)
        assert stats == expected_stats
        assert torch.equal(dirty.grad, clean.grad)
        assert not dirty.grad[~mask].any()

    def test_without_a_clip_it_is_half_the_mean_squared_error(self):
        mask, draw = masked_case(1)
        values, returns = draw(), draw()
        loss, stats = losses.value_loss(values, draw(), returns, mask, None)
        torch.testing.assert_close(loss, 0.5 * (values - returns)[mask].square().mean(), **EXACT)
        assert stats["value_clip_fraction"].item() == 0

    def test_explained_variance(self):
        mask, draw = masked_case(2)
        returns = draw()
        assert losses.explained_variance(returns + 3, returns, mask).item() == pytest.approx(1)
        assert losses.explained_variance(torch.zeros_like(returns), returns, mask).item() == pytest.approx(0)
        assert losses.explained_variance(-returns, returns, mask).item() == pytest.approx(-3)
        assert losses.explained_variance(returns, torch.ones_like(returns), mask).item() == 0


class TestKlPenalty:
    @given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
    def test_k1_and_k3_are_unbiased(self, p, q):
        size = min(len(p), len(q))
        p = torch.tensor(p[:size], dtype=torch.float64)
        q = torch.tensor(q[:size], dtype=torch.float64)
        p, q = p / p.sum(), q / q.sum()
        kl = (p * (p / q).log()).sum()
        for kind in ("k1", "k3"):
            unclamped = losses.kl_penalty(p.log()[None], q.log()[None], kind)
            if unclamped.max() < 10:
                torch.testing.assert_close((p * unclamped[0]).sum(), kl, rtol=1e-9, atol=1e-12)

    def test_closed_forms(self):
        logprobs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
        ref = torch.tensor([[-1.5, -1.0]], dtype=torch.float64)
        for kind, expected in {
            "k1": [0.5, -1.0],
            "k2": [0.125, 0.5],
            "k3": [math.exp(-0.5) - 1 + 0.5, math.e - 2],
        }.items():
            expected = torch.tensor([expected], dtype=torch.float64)
            torch.testing.assert_close(losses.kl_penalty(logprobs, ref, kind), expected, **EXACT)

    @given(st.integers(0, 10_000))
    def test_k2_and_k3_are_never_negative_and_k3_is_clamped(self, seed):
        _, draw = masked_case(seed)
        logprobs, ref = 5 * draw(), 5 * draw()
        assert (losses.kl_penalty(logprobs, ref, "k2") >= 0).all()
        k3 = losses.kl_penalty(logprobs, ref, "k3")
        assert ((k3 >= 0) & (k3 <= 10)).all()
        assert losses.kl_penalty(torch.tensor([[-20.0]]), torch.tensor([[0.0]]), "k3").item() == 10

    def test_gradient_of_k2_is_the_policy_gradient_of_k1(self):
        """Why k2 is used as a loss where k1 is used as a reward."""
        logprobs = torch.tensor([[-1.0, -3.0]], requires_grad=True)
        ref = torch.tensor([[-2.0, -1.0]])
        losses.kl_penalty(logprobs, ref, "k2").sum().backward()
        torch.testing.assert_close(logprobs.grad, losses.kl_penalty(logprobs.detach(), ref, "k1"))

    def test_unknown_kind(self):
        with pytest.raises((OptionError, TypeCheckError), match="k1"):
            losses.kl_penalty(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_rows_do_not_see_each_other_in_gae(seed, batch):
    mask, draw = masked_case(seed, batch=batch)
    rewards, values = draw(), draw()
    together, _ = losses.gae(rewards, values, mask, 0.9, 0.8)
    for b in range(batch):
        row = slice(b, b + 1)
        alone, _ = losses.gae(rewards[row], values[row], mask[row], 0.9, 0.8)
        torch.testing.assert_close(together[row], alone, **EXACT)


def weights_reference(mask, aggregation, max_tokens):
    weights = torch.zeros(mask.shape)
    for b in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[b, t]:
                weights[b, t] = {
                    "token-mean": 1 / int(mask.sum()),
                    "sequence-mean": 1 / (mask.shape[0] * int(mask[b].sum())),
                    "sequence-sum": 1 / (mask.shape[0] * max_tokens),
                }[aggregation]
    return weights


AGGREGATIONS = ("token-mean", "sequence-mean", "sequence-sum")
# Weights are float32: each is off by at most 2^-24 of itself, and a sum of numbers near 1 by 1e-6 at most.
SINGLE = {"rtol": 2**-22, "atol": 1e-6}


class TestTokenWeights:
    @given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from(AGGREGATIONS), st.integers(1, 40))
    def test_equals_the_loop(self, seed, batch, aggregation, max_tokens):
        mask, _ = masked_case(seed, batch=batch)
        mask[batch // 2] &= seed % 2 == 0  # at times a row without sampled tokens
        weights = losses.token_weights(mask, aggregation, max_tokens=max_tokens)
        torch.testing.assert_close(weights, weights_reference(mask, aggregation, max_tokens), **SINGLE)
        assert not weights[~mask].any()

    @given(st.integers(0, 10_000))
    def test_what_counts_the_same(self, seed):
        mask, _ = masked_case(seed, batch=4)
        lengths = mask.sum(dim=1)
        by_token, by_row, by_constant = (losses.token_weights(mask, how, max_tokens=7) for how in AGGREGATIONS)
        assert by_token[mask].unique().numel() == 1
        torch.testing.assert_close(by_token.sum(), torch.tensor(1.0), **SINGLE)
        torch.testing.assert_close(by_row.sum(dim=1), torch.full((4,), 1 / 4), **SINGLE)
        torch.testing.assert_close(by_constant.sum(dim=1), lengths / (4 * 7), **SINGLE)

    @given(st.integers(0, 10_000), st.sampled_from(AGGREGATIONS), st.integers(1, 5))
    def test_parts_add_up_to_the_whole(self, seed, aggregation, cut):
        mask, draw = masked_case(seed, batch=6)
        x = draw()
        weights = losses.token_weights(mask, aggregation, max_tokens=5)
        whole = losses.weighted_sum(x, mask, weights)
        parts = [losses.weighted_sum(x[rows], mask[rows], weights[rows]) for rows in (slice(cut), slice(cut, None))]
        torch.testing.assert_close(parts[0] + parts[1], whole, **EXACT)

    def test_the_three_differ_where_rows_have_different_lengths(self):
        mask = torch.tensor([[True, False, False], [True, True, True]])
        x = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
        sums = [losses.weighted_sum(x, mask, losses.token_weights(mask, how, max_tokens=8)) for how in AGGREGATIONS]
        assert [x.item() for x in sums] == [1 / 4, 1 / 2, 1 / 16]

    def test_nothing_sampled_weighs_nothing(self):
        for aggregation in AGGREGATIONS:
            assert not losses.token_weights(torch.zeros(2, 3, dtype=torch.bool), aggregation).any()

    @pytest.mark.parametrize(("aggregation", "max_tokens"), [("mean", 1), ("sequence-sum", 0)])
    def test_what_is_refused(self, aggregation, max_tokens):
        with pytest.raises((OptionError, TypeCheckError), match="sequence-sum"):
            losses.token_weights(torch.ones(1, 1, dtype=torch.bool), aggregation, max_tokens=max_tokens)


class TestWeightedSum:
    @given(st.integers(0, 10_000))
    def test_equals_the_loop_and_ignores_the_rest(self, seed):
        mask, draw = masked_case(seed)
        x, weights = draw(), draw().float()
        expected = sum(float(x[b, t]) * float(weights[b, t]) for b in range(3) for t in range(x.shape[1]) if mask[b, t])
        actual = losses.weighted_sum(poison(x, mask), mask, torch.where(mask, weights, 0.0))
        assert actual.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)

    @given(st.integers(0, 10_000))
    def test_without_weights_it_is_the_mean(self, seed):
        mask, draw = masked_case(seed)
        x = draw()
        assert torch.equal(losses.weighted_sum(x, mask), losses.masked_mean(x, mask))
        torch.testing.assert_close(losses.weighted_sum(x, mask, losses.token_weights(mask)), x[mask].mean(), **SINGLE)


def policy_loss_case(seed, per_row=False):
    mask, draw = masked_case(seed)
    old = -draw().abs()
    new = old + 0.3 * draw()
    advantages = draw()
    return mask, old, new, losses.spread(advantages[:, 0], mask) if per_row else advantages


@pytest.mark.parametrize("policy_loss", [losses.ppo_policy_loss, losses.gspo_policy_loss])
@given(seed=st.integers(0, 10_000))
def test_without_weights_every_token_counts_the_same(policy_loss, seed):
    mask, old, new, advantages = policy_loss_case(seed, per_row=True)
    loss, stats = policy_loss(new, old, advantages, mask, 0.2, 0.3)
    weighted, weighted_stats = policy_loss(new, old, advantages, mask, 0.2, 0.3, weights=losses.token_weights(mask))
    torch.testing.assert_close(weighted, loss, **SINGLE)
    for name, value in stats.items():
        torch.testing.assert_close(weighted_stats[name].double(), value.double(), **SINGLE)


class TestGspoPolicyLoss:
    @given(st.integers(0, 10_000))
    def test_equals_the_loop(self, seed):
        mask, old, new, advantages = policy_loss_case(seed, per_row=True)
        ratios, terms = [], []
        for b in range(3):
            sampled = [t for t in range(mask.shape[1]) if mask[b, t]]
            ratio = math.prod(math.exp(new[b, t] - old[b, t]) for t in sampled) ** (1 / len(sampled))
            advantage = float(advantages[b, sampled[0]])
            ratios.append(ratio)
            terms.append(max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.05)))
        weights = losses.token_weights(mask, "sequence-mean")
        loss, stats = losses.gspo_policy_loss(
            poison(new, mask), poison(old, mask), poison(advantages, mask), mask, 0.1, 0.05, weights=weights
        )
        assert loss.item() == pytest.approx(np.mean(terms), rel=1e-6, abs=1e-6)
        assert stats["ratio_mean"].item() == pytest.approx(np.mean(ratios), rel=1e-6)
        assert stats["ratio_max"].item() == pytest.approx(max(ratios), rel=1e-9)

    @given(st.integers(0, 10_000))
    def test_every_token_of_a_rollout_gets_the_same_gradient(self, seed):
        """d/d log pi_t of -A s / B, with s the geometric mean of n ratios, is -A s / (B n)."""
        mask, old, new, advantages = policy_loss_case(seed, per_row=True)
        logprobs = poison(new, mask).requires_grad_()
        weights = losses.token_weights(mask, "sequence-mean")
        loss, _ = losses.gspo_policy_loss(logprobs, old, advantages, mask, 100.0, 100.0, weights=weights)
        loss.backward()
        lengths = mask.sum(dim=1, keepdim=True)
        ratio = (torch.where(mask, new - old, 0.0).sum(dim=1, keepdim=True) / lengths).exp()
        torch.testing.assert_close(logprobs.grad, -advantages * ratio / (3 * lengths) * mask, **SINGLE)

    def test_one_outlier_is_clipped_by_ppo_and_not_by_gspo(self):
        old, mask = torch.zeros(1, 10), torch.ones(1, 10, dtype=torch.bool)
        new = torch.zeros(1, 10)
        new[0, 3] = math.log(2.0)
        _, by_token = losses.ppo_policy_loss(new, old, torch.ones(1, 10), mask, 0.2, 0.2)
        _, by_row = losses.gspo_policy_loss(new, old, torch.ones(1, 10), mask, 0.2, 0.2)
        assert by_token["clip_fraction"].item() == pytest.approx(0.1)
        assert by_row["clip_fraction"].item() == 0
        assert by_row["ratio_max"].item() == pytest.approx(2 ** (1 / 10))

    def test_a_row_without_sampled_tokens_has_ratio_1(self):
        nothing = torch.zeros(2, 3, dtype=torch.bool)
        assert not losses.sequence_log_ratio(torch.ones(2, 3), torch.zeros(2, 3), nothing).any()


class TestReinforceLoss:
    @given(st.integers(0, 10_000), st.sampled_from(AGGREGATIONS))
    def test_gradient_is_that_of_ppo_at_ratio_1(self, seed, aggregation):
        mask, old, _, advantages = policy_loss_case(seed)
        weights = losses.token_weights(mask, aggregation, max_tokens=9)
        mine, theirs = poison(old, mask).requires_grad_(), old.clone().requires_grad_()
        losses.reinforce_loss(mine, poison(advantages, mask), mask, weights=weights).backward()
        losses.ppo_policy_loss(theirs, old, advantages, mask, 0.2, 0.2, weights=weights)[0].backward()
        torch.testing.assert_close(mine.grad, theirs.grad, **EXACT)
        torch.testing.assert_close(mine.grad, -torch.where(mask, advantages, 0.0) * weights, **EXACT)

    def test_value(self):
        loss = losses.reinforce_loss(
            torch.tensor([[-1.0, -2.0, 5.0]]), torch.tensor([[2.0, -1.0, 7.0]]), torch.tensor([[True, True, False]])
        )
        assert loss.item() == (2.0 * 1.0 + -1.0 * 2.0) / 2


def turns_of(mask):
    """For each row, the columns of each run of sampled tokens."""
    rows = []
    for row in mask.tolist():
        turns = []
        for t, is_sampled in enumerate(row):
            if is_sampled and (t == 0 or not row[t - 1]):
                turns.append([])
            if is_sampled:
                turns[-1].append(t)
        rows.append(turns)
    return rows


def turn_gae_reference(rewards, values, mask, gamma, lam):
    advantages, returns, starts = torch.zeros_like(rewards), torch.zeros_like(rewards), torch.zeros_like(mask)
    for b, turns in enumerate(turns_of(mask)):
        next_value = running = 0.0
        for turn in reversed(turns):
            value = values[b, turn[0]]
            running = sum(rewards[b, t] for t in turn) + gamma * next_value - value + gamma * lam * running
            next_value = value
            advantages[b, turn] = running
            returns[b, turn[0]] = running + value
            starts[b, turn[0]] = True
    return advantages, returns, starts


class TestTurnGae:
    @given(st.integers(0, 10_000), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1))
    def test_equals_the_loop(self, seed, length, gamma, lam):
        mask, draw = masked_case(seed, length=length)
        rewards, values = draw(), draw()
        *expected, starts = turn_gae_reference(rewards, values, mask, gamma, lam)
        *actual, actual_starts = losses.turn_gae(poison(rewards, mask), poison(values, starts), mask, gamma, lam)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, **EXACT)
        assert torch.equal(actual_starts, starts)
        assert torch.equal(losses.turn_starts(mask), starts)

    @given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
    def test_turns_of_one_token_are_tokens(self, seed, gamma, lam):
        _, draw = masked_case(seed)
        mask = torch.arange(12).remainder(2).bool().expand(3, -1)
        rewards, values = draw(), draw()
        advantages, returns, starts = losses.turn_gae(rewards, values, mask, gamma, lam)
        for a, e in zip((advantages, returns), losses.gae(rewards, values, mask, gamma, lam), strict=True):
            torch.testing.assert_close(a, e, **EXACT)
        assert torch.equal(starts, mask)

    @given(st.integers(0, 10_000), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
    def test_a_longer_observation_changes_nothing(self, seed, extra, gamma, lam):
        mask, draw = masked_case(seed, batch=1)
        mask[0, 3] = False
        rewards, values = draw(), draw()

        def lengthen(x, fill):
            return torch.cat((x[:, :3], torch.full((1, extra), fill, dtype=x.dtype), x[:, 3:]), dim=1)

        longer_mask = lengthen(mask, False)
        longer = losses.turn_gae(lengthen(rewards, math.nan), lengthen(values, math.inf), longer_mask, gamma, lam)
        short = losses.turn_gae(rewards, values, mask, gamma, lam)
        for a, e in zip(longer, short, strict=True):
            torch.testing.assert_close(a[longer_mask], e[mask], **EXACT)

    def test_gamma_discounts_turns_and_not_tokens(self):
        mask = torch.tensor([[False, True, True, True, False, True, True]])
        rewards = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1]])
        advantages, returns, starts = losses.turn_gae(rewards, torch.zeros(1, 7), mask, 0.5, 1.0)
        assert advantages.tolist() == [[0, 0.5, 0.5, 0.5, 0, 1, 1]]
        assert returns.tolist() == [[0, 0.5, 0, 0, 0, 1, 0]]
        assert starts.tolist() == [[False, True, False, False, False, True, False]]


def llds_reference(logprobs, old, advantages, mask, gate, weights):
    total = 0.0
    for b, turns in enumerate(turns_of(mask)):
        for unit in turns if gate == "turn" else [[t for turn in turns for t in turn]]:
            if sum(float(old[b, t] - logprobs[b, t]) for t in unit) > 0:
                for t in unit:
                    if advantages[b, t] >= 0:
                        total += float(weights[b, t]) * max(0.0, float(old[b, t] - logprobs[b, t]))
    return total


class TestLldsLoss:
    @given(st.integers(0, 10_000), st.sampled_from(["turn", "rollout"]), st.sampled_from(AGGREGATIONS))
    def test_equals_the_loop(self, seed, gate, aggregation):
        mask, old, new, advantages = policy_loss_case(seed)
        weights = losses.token_weights(mask, aggregation, max_tokens=6)
        expected = llds_reference(new, old, advantages, mask, gate, weights)
        dirty = poison(new, mask).requires_grad_()
        loss = losses.llds_loss(dirty, poison(old, mask), poison(advantages, mask), mask, gate=gate, weights=weights)
        assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        loss.backward()
        is_responsible = mask & (new < old) & (advantages >= 0)
        assert not dirty.grad[~is_responsible].any()
        # Descending the loss can only raise log-probabilities, each by its weight.
        moved = dirty.grad != 0
        torch.testing.assert_close(dirty.grad[moved], -weights[moved].double(), **EXACT)

    @given(st.integers(0, 10_000), st.sampled_from(["turn", "rollout"]))
    def test_nothing_is_lost_when_likelihood_rises(self, seed, gate):
        mask, old, _, advantages = policy_loss_case(seed)
        assert losses.llds_loss(old + 0.1, old, advantages.abs(), mask, gate=gate).item() == 0
        assert losses.llds_loss(old - 0.1, old, -advantages.abs() - 1e-3, mask, gate=gate).item() == 0

    def test_the_gate(self):
        """The first turn has lost 1 and gained 0.4; the second has gained 2, so the rollout as a whole has gained."""
        mask = torch.tensor([[True, True, False, True]])
        gain = torch.tensor([[-1.0, 0.4, 9.0, 2.0]])
        good, zeros = torch.ones(1, 4), torch.zeros(1, 4)
        assert losses.llds_loss(gain, zeros, good, mask, gate="turn").item() == pytest.approx(1 / 3)
        assert losses.llds_loss(gain, zeros, good, mask, gate="rollout").item() == 0

    def test_without_weights_every_token_counts_the_same(self):
        mask, old, new, advantages = policy_loss_case(7)
        weighted = losses.llds_loss(new, old, advantages, mask, weights=losses.token_weights(mask))
        torch.testing.assert_close(losses.llds_loss(new, old, advantages, mask), weighted, **SINGLE)

    def test_unknown_gate(self):
        one = torch.ones(1, 1)
        with pytest.raises((OptionError, TypeCheckError), match="rollout"):
            losses.llds_loss(one, one, one, one.bool(), gate="token")


class TestDisplacement:
    @given(st.integers(0, 10_000))
    def test_equals_the_loop(self, seed):
        mask, old, new, advantages = policy_loss_case(seed)
        weights = losses.token_weights(mask, "sequence-mean")
        gains = losses.displacement(
            poison(new, mask), poison(old, mask), poison(advantages, mask), mask, weights=weights
        )
        for name, sign in (("likelihood_gain_good", 1), ("likelihood_gain_bad", -1)):
            chosen = mask & (sign * advantages > 0)
            expected = ((new - old) * weights)[chosen].sum().item()
            assert gains[name].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)

    def test_it_has_no_gradient_and_zero_advantage_is_neither(self):
        mask = torch.ones(1, 3, dtype=torch.bool)
        gains = losses.displacement(
            torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True),
            torch.zeros(1, 3),
            torch.tensor([[1.0, 0.0, -1.0]]),
            mask,
        )
        assert {name: gain.item() for name, gain in gains.items()} == {
            "likelihood_gain_good": pytest.approx(1 / 3),
            "likelihood_gain_bad": pytest.approx(4 / 3),
        }
        assert not any(gain.requires_grad for gain in gains.values())


@given(st.integers(0, 10_000))
def test_spread_puts_a_number_on_every_sampled_token_of_its_row(seed):
    mask, draw = masked_case(seed)
    per_row = draw()[:, 0]
    for b, row in enumerate(losses.spread(per_row, mask)):
        assert row.tolist() == [float(per_row[b]) if sampled else 0.0 for sampled in mask[b].tolist()]


class TestPenalisedRewards:
    @given(st.integers(0, 10_000), st.floats(1e-3, 10))
    def test_each_sampled_token_pays_for_its_own_log_ratio(self, seed, coef):
        mask, old, new, rewards = policy_loss_case(seed)
        rewards = torch.where(mask, rewards, 0.0)
        paid = losses.penalised_rewards(rewards, new, old, mask, coef)
        torch.testing.assert_close(paid, rewards - coef * (new - old) * mask, rtol=0, atol=1e-10)
        # Summed over a rollout, what is paid is the log-ratio of the whole: an unbiased estimate of the KL.
        total = (rewards - paid).sum(dim=1)
        torch.testing.assert_close(total, coef * ((new - old) * mask).sum(dim=1), rtol=0, atol=1e-9)

    def test_what_is_not_sampled_does_not_matter(self):
        mask, old, new, rewards = policy_loss_case(3)
        rewards = torch.where(mask, rewards, 0.0)
        clean = losses.penalised_rewards(rewards, new, old, mask, 0.1)
        assert torch.equal(losses.penalised_rewards(rewards, poison(new, mask), poison(old, mask), mask, 0.1), clean)

    def test_without_a_reference_or_a_weight_rewards_stay(self):
        mask, old, new, rewards = policy_loss_case(4)
        assert torch.equal(losses.penalised_rewards(rewards, new, None, mask, 0.5), rewards)
        assert torch.equal(losses.penalised_rewards(rewards, new, old, mask, 0.0), rewards)


class TestKlLoss:
    @given(st.integers(0, 10_000))
    def test_is_the_mean_of_k3_over_sampled_tokens(self, seed):
        mask, ref, new, _ = policy_loss_case(seed)
        logprobs = poison(new, mask).requires_grad_()
        loss = losses.kl_loss(logprobs, poison(ref, mask), mask)
        d = (ref - new)[mask]
        torch.testing.assert_close(loss, (d.exp() - d - 1).mean(), rtol=0, atol=1e-12)
        loss.backward()
        expected = torch.zeros_like(new)
        expected[mask] = (1 - d.exp()) / mask.sum()
        torch.testing.assert_close(logprobs.grad, expected, rtol=0, atol=1e-12)

    def test_weights(self):
        mask, ref, new, _ = policy_loss_case(5)
        weights = losses.token_weights(mask, "sequence-sum", max_tokens=3)
        expected = (losses.kl_penalty(new, ref, "k3") * weights).sum()
        torch.testing.assert_close(losses.kl_loss(new, ref, mask, weights=weights), expected, **EXACT)


class TestAdvantagesOfRelatives:
    @given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 4))
    def test_leave_one_out_is_centring_made_larger(self, seed, size, groups):
        """r_i - mean of the others = n / (n - 1) (r_i - mean of all): RLOO is Dr. GRPO at another learning rate."""
        generator = torch.Generator().manual_seed(seed)
        rewards = torch.rand(size * groups, generator=generator)
        ids = torch.arange(groups).repeat_interleave(size)[torch.randperm(size * groups, generator=generator)]
        rloo = losses.group_advantages(rewards, ids, normalize_std=False, leave_one_out=True)
        dr_grpo = losses.group_advantages(rewards, ids, normalize_std=False)
        torch.testing.assert_close(rloo, size / (size - 1) * dr_grpo, rtol=1e-6, atol=1e-7)
        centred = [rewards[ids == g] - rewards[ids == g].mean() for g in range(groups)]
        torch.testing.assert_close(torch.cat([dr_grpo[ids == g] for g in range(groups)]), torch.cat(centred))

    @given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6), st.booleans(), st.booleans())
    def test_a_group_of_one_keeps_its_reward(self, rewards, normalize_std, leave_one_out):
        r = torch.tensor(rewards)
        options = {"normalize_std": normalize_std, "leave_one_out": leave_one_out}
        assert torch.equal(losses.group_advantages(r, torch.arange(len(rewards)), **options), r)

    @given(st.floats(-1, 1, width=32), st.integers(2, 9), st.booleans(), st.booleans())
    def test_equal_rewards_give_exactly_zero(self, reward, size, normalize_std, leave_one_out):
        options = {"normalize_std": normalize_std, "leave_one_out": leave_one_out}
        rewards, ids = torch.full((size,), reward), torch.full((size,), 3)
        assert not losses.group_advantages(rewards, ids, **options).any()
