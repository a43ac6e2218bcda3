"""Per-token results against one plain forward pass and a loop, for several models, however padded."""

import copy

import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policy import CausalLMPolicy, CausalLMWithValueHead, evaluate_tokens, token_logprobs
from search_gym.errors import OptionError

VOCAB = 32
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module", params=["llama", "gpt2", "tiny"])
def model(request):
    return getattr(small_models, request.param)(VOCAB)


def sequences(seed, batch=3):
    """Ragged token ids with loss masks that never hold the first token."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(2, 12, (batch,), generator=generator).tolist():
        ids = torch.randint(0, VOCAB, (length,), generator=generator)
        sampled = torch.rand(length, generator=generator) < 0.5
        sampled[0], sampled[-1] = False, True
        rows.append((ids, sampled))
    return rows


def pad(rows, left, right):
    """(B, T) token ids, attention mask and loss mask; short rows are padded on the side that ``left`` picks."""
    width = max(ids.numel() for ids, _ in rows) + left + right

    def place(x, fill):
        missing = width - x.numel() - right
        before = missing if left else 0
        return torch.nn.functional.pad(x, (before, width - x.numel() - before), value=fill)

    token_ids = torch.stack([place(ids, 3) for ids, _ in rows])
    attention_mask = torch.stack([place(torch.ones_like(ids, dtype=torch.bool), False) for ids, _ in rows])
    loss_mask = torch.stack([place(sampled, False) for _, sampled in rows])
    return token_ids, attention_mask, loss_mask


def reference(model, ids, temperature, vocab_size=VOCAB):
    """Log-probability and entropy of each token of one unpadded row, token by token."""
    logits = model(input_ids=ids[None]).logits[0, :, :vocab_size]
    logprobs, entropies = [torch.tensor(0.0)], [torch.tensor(0.0)]
    for t in range(1, ids.numel()):
        distribution = torch.distributions.Categorical(logits=logits[t - 1] / temperature)
        logprobs.append(distribution.log_prob(ids[t]) if ids[t] < vocab_size else torch.tensor(-torch.inf))
        entropies.append(distribution.entropy())
    return torch.stack(logprobs), torch.stack(entropies)


class TestTokenLogprobs:
    @given(st.integers(0, 1000), st.sampled_from([0.5, 1.0, 1.7]), st.sampled_from([None, 5]))
    def test_equals_log_softmax_one_token_earlier(self, seed, temperature, vocab_size):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(2, 6, 9, generator=generator)
        token_ids = torch.randint(0, vocab_size or 9, (2, 6), generator=generator)
        actual = token_logprobs(logits, token_ids, temperature, vocab_size=vocab_size)
        assert torch.equal(actual[:, 0], torch.zeros(2))
        for b in range(2):
            for t in range(1, 6):
                expected = (logits[b, t - 1, :vocab_size] / temperature).log_softmax(-1)[token_ids[b, t]]
                torch.testing.assert_close(actual[b, t], expected, **CLOSE)

    def test_the_token_itself_and_what_follows_have_no_say(self):
        logits = torch.randn(1, 5, 7, requires_grad=True)
        token_logprobs(logits, torch.zeros(1, 5, dtype=torch.int64), 1.0)[0, 2].backward()
        touched = logits.grad[0].abs().sum(-1) > 0
        assert touched.tolist() == [False, True, False, False, False]

    def test_half_precision_logits_are_read_in_float32(self):
        logits = torch.randn(1, 4, 9).bfloat16()
        ids = torch.tensor([[0, 1, 2, 3]])
        expected = token_logprobs(logits.float(), ids, 1.0)
        assert torch.equal(token_logprobs(logits, ids, 1.0), expected)

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_temperature_must_be_positive(self, temperature):
        with pytest.raises(OptionError, match="temperature"):
            token_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), temperature)


class TestEvaluateTokens:
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 1000), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.7, 1.0]))
    def test_equals_one_unpadded_row_at_a_time(self, model, seed, left, right, temperature):
        rows = sequences(seed)
        token_ids, attention_mask, loss_mask = pad(rows, left, right)
        with torch.no_grad():
            scores = evaluate_tokens(model, token_ids, attention_mask, loss_mask, temperature)
            for b, (ids, sampled) in enumerate(rows):
                logprobs, entropies = reference(model, ids, temperature)
                torch.testing.assert_close(scores.logprobs[b][loss_mask[b]], logprobs[sampled], rtol=0, atol=1e-5)
                torch.testing.assert_close(scores.entropies[b][loss_mask[b]], entropies[sampled], rtol=0, atol=1e-5)
        for x in scores:
            assert not x[~loss_mask].any()

    def test_equals_token_logprobs_of_all_logits_in_value_and_gradient(self, model):
        token_ids, attention_mask, loss_mask = pad(sequences(1), 2, 1)
        weights = torch.randn(loss_mask.shape, generator=torch.Generator().manual_seed(0)) * loss_mask

        def gradients(logprobs):
            model.zero_grad()
            (logprobs * weights).sum().backward()
            return [p.grad.clone() for p in model.parameters() if p.grad is not None]

        position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
        output = model(input_ids=token_ids, attention_mask=attention_mask.long(), position_ids=position_ids)
        expected = token_logprobs(output.logits, token_ids, 1.0)
        scores = evaluate_tokens(model, token_ids, attention_mask, loss_mask, 1.0)
        torch.testing.assert_close(scores.logprobs[loss_mask], expected[loss_mask], **CLOSE)
        for actual, wanted in zip(gradients(scores.logprobs), gradients(expected), strict=True):
            assert wanted.isfinite().all()
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)

    def test_padded_vocabulary_has_no_probability(self, model):
        ids = torch.tensor([2, 3, 4, 5])
        loss_mask = torch.tensor([[False, True, True, True]])
        with torch.no_grad():
            scores = evaluate_tokens(model, ids[None], torch.ones_like(loss_mask), loss_mask, 1.0, vocab_size=6)
            logprobs, entropies = reference(model, ids, 1.0, vocab_size=6)
        torch.testing.assert_close(scores.logprobs[0], logprobs, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores.entropies[0], entropies, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("entropy_grad", [True, False])
    def test_entropy_gradient_is_optional(self, model, entropy_grad):
        token_ids, attention_mask, loss_mask = pad(sequences(2), 0, 0)
        scores = evaluate_tokens(model, token_ids, attention_mask, loss_mask, 1.0, entropy_grad=entropy_grad)
        assert scores.logprobs.requires_grad
        assert scores.entropies.requires_grad == entropy_grad

    def test_nothing_sampled(self, model):
        token_ids, attention_mask, loss_mask = pad(sequences(3), 0, 0)
        scores = evaluate_tokens(model, token_ids, attention_mask, torch.zeros_like(loss_mask), 1.0)
        assert not any(x.any() for x in scores)

    def test_the_first_token_cannot_be_a_sampled_one(self, model):
        ids = torch.zeros(1, 3, dtype=torch.int64)
        mask = torch.ones(1, 3, dtype=torch.bool)
        with pytest.raises(OptionError, match="prompt"):
            evaluate_tokens(model, ids, mask, mask, 1.0)


class TestValueHead:
    def test_values_start_at_zero_and_scores_are_those_of_the_model(self, model):
        token_ids, attention_mask, loss_mask = pad(sequences(4), 1, 1)
        evaluation = CausalLMWithValueHead(model).evaluate_tokens(token_ids, attention_mask, loss_mask, 0.7)
        scores = evaluate_tokens(model, token_ids, attention_mask, loss_mask, 0.7)
        assert not evaluation.values.any()
        assert torch.equal(evaluation.logprobs, scores.logprobs)
        assert torch.equal(evaluation.entropies, scores.entropies)

    def test_a_value_is_read_where_its_token_was_chosen(self, model):
        rows = sequences(5)
        token_ids, attention_mask, loss_mask = pad(rows, 2, 1)
        torch.manual_seed(0)
        policy = CausalLMWithValueHead(model)
        torch.nn.init.normal_(policy.value_head.weight)
        with torch.no_grad():
            values = policy.evaluate_tokens(token_ids, attention_mask, loss_mask, 1.0).values
            for b, (ids, sampled) in enumerate(rows):
                hidden = model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]
                expected = [policy.value_head(hidden[t - 1]).item() for t in sampled.nonzero().flatten().tolist()]
                torch.testing.assert_close(values[b][loss_mask[b]], torch.tensor(expected), rtol=0, atol=1e-5)
        assert not values[~loss_mask].any()

    @pytest.mark.parametrize("detach_value", [True, False])
    def test_value_loss_trains_the_model_unless_detached(self, model, detach_value):
        token_ids, attention_mask, loss_mask = pad(sequences(6), 0, 0)
        torch.manual_seed(0)
        policy = CausalLMWithValueHead(model, detach_value=detach_value)
        torch.nn.init.normal_(policy.value_head.weight)
        policy.zero_grad()
        policy.evaluate_tokens(token_ids, attention_mask, loss_mask, 1.0).values.square().sum().backward()
        trained = any(p.grad is not None and p.grad.any() for p in model.parameters())
        assert trained == (not detach_value)
        assert policy.value_head.bias.grad.any()

    def test_the_future_has_no_say(self, model):
        """Changing a later token, sampled or not, leaves the earlier results as they are."""
        ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
        changed = ids.clone()
        changed[0, 4] = 20
        mask = torch.ones_like(ids, dtype=torch.bool)
        loss_mask = mask.clone()
        loss_mask[0, 0] = False
        torch.manual_seed(0)
        policy = CausalLMWithValueHead(model)
        torch.nn.init.normal_(policy.value_head.weight)
        with torch.no_grad():
            before = policy.evaluate_tokens(ids, mask, loss_mask, 1.0)
            after = policy.evaluate_tokens(changed, mask, loss_mask, 1.0)
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a[:, :4], b[:, :4], **CLOSE)
            assert (a[0, 5] - b[0, 5]).abs() > 1e-4
        # Token 4 was chosen before it was seen: its value and entropy stay, its log-probability does not.
        assert torch.allclose(before.values[0, 4], after.values[0, 4], **CLOSE)
        assert (before.logprobs[0, 4] - after.logprobs[0, 4]).abs() > 1e-4


def test_a_policy_without_values_is_the_function(model):
    batch = pad(sequences(7), 1, 0)
    policy = CausalLMPolicy(model, vocab_size=VOCAB - 2)
    expected = evaluate_tokens(model, *batch, 0.7, vocab_size=VOCAB - 2)
    for scores in (policy.evaluate_tokens(*batch, 0.7), policy(*batch, 0.7)):
        for a, b in zip(scores, expected, strict=True):
            assert torch.equal(a, b)


class TestSeparateCritic:
    def pair(self, model):
        """A policy whose critic is its copy, and the same policy without one; their value heads are equal."""
        torch.manual_seed(0)
        shared = CausalLMWithValueHead(model)
        torch.nn.init.normal_(shared.value_head.weight)
        separate = CausalLMWithValueHead(model, critic=copy.deepcopy(model))
        separate.value_head.load_state_dict(shared.value_head.state_dict())
        return shared, separate

    def test_it_begins_as_the_shared_one_and_then_says_what_the_critic_says(self, model):
        batch = pad(sequences(8), 2, 1)
        shared, separate = self.pair(model)
        with torch.no_grad():
            for a, b in zip(shared.evaluate_tokens(*batch, 0.7), separate.evaluate_tokens(*batch, 0.7), strict=True):
                torch.testing.assert_close(a, b, **CLOSE)
            generator = torch.Generator().manual_seed(3)
            for weight in separate.critic.parameters():
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
            before, after = shared.evaluate_tokens(*batch, 0.7), separate.evaluate_tokens(*batch, 0.7)
            critic = CausalLMWithValueHead(separate.critic)
            critic.value_head.load_state_dict(shared.value_head.state_dict())
            expected = critic.evaluate_tokens(*batch, 0.7).values
        assert torch.equal(after.logprobs, before.logprobs)
        assert torch.equal(after.entropies, before.entropies)
        assert (after.values - before.values).abs().max() > 1e-3
        torch.testing.assert_close(after.values, expected, **CLOSE)

    def test_each_loss_trains_its_own_model(self, model):
        batch = pad(sequences(9), 0, 0)
        _, separate = self.pair(model)

        def trained(loss):
            separate.zero_grad()
            loss.backward()
            parts = (separate.model, separate.critic, separate.value_head)
            return [any(p.grad is not None and p.grad.any() for p in part.parameters()) for part in parts]

        evaluation = separate.evaluate_tokens(*batch, 1.0)
        assert trained(evaluation.values.square().sum()) == [False, True, True]
        assert trained(separate.evaluate_tokens(*batch, 1.0).logprobs.sum()) == [True, False, False]
