"""Both engines against one that feeds the whole sequence again for every token."""

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.fast_generation import FastGenerator
from agents.generation import CachedGenerator, make_generator
from agents.policy import evaluate_tokens
from agents.sampling import nucleus
from search_gym.errors import OptionError
from search_gym.tags import closes_turn


class PieceCodec:
    """A vocabulary in which a closing tag takes two tokens and may come with more characters."""

    pieces = ("<pad>", "<eos>", "</search", "</answer", ">", ">\n", "<think", "w", " ")
    pad_id, eos_id, vocab_size = 0, 1, len(pieces)

    def encode(self, text, *, allow_special=False):
        raise AssertionError("a generator has nothing to encode")

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids)


CODEC = PieceCodec()
PADDED = CODEC.vocab_size + 3  # rows of the embedding


@pytest.fixture(scope="module", params=["llama", "eager_llama", "sliding", "gpt2", "tiny"], ids=lambda name: name)
def model(request):
    return getattr(small_models, request.param)(PADDED)


class UncachedGenerator:
    """The same protocol, one slot and one token at a time, without a cache."""

    def __init__(self, model, codec, *, temperature=1.0, greedy=False):
        self.model, self.codec, self.temperature, self.greedy = model, codec, temperature, greedy

    def start(self, num_slots, seed, first_episode=0):
        self.seed, self.first_episode = seed, first_episode
        self.num_turns = [0] * num_slots
        self.held = [[] for _ in range(num_slots)]

    def extend(self, slots, token_ids):
        for slot, ids in zip(slots, token_ids, strict=True):
            self.held[slot] += list(ids)

    def drop(self, slots):
        for slot in slots:
            self.held[slot] = []

    @torch.no_grad()
    def sample(self, slots, max_tokens):
        turns = []
        for slot, limit in zip(slots, max_tokens, strict=True):
            turn, logprobs = [], []
            uniforms = np.random.default_rng((self.seed, self.first_episode + slot, self.num_turns[slot])).random(limit)
            self.num_turns[slot] += 1
            while len(turn) < limit and self.codec.eos_id not in turn and not closes_turn(self.codec.decode(turn)):
                logits = self.model(input_ids=torch.tensor([self.held[slot] + turn])).logits[0, -1]
                logits = logits[: self.codec.vocab_size] / self.temperature
                if self.greedy:
                    token = int(logits.argmax())
                else:
                    cumulative = logits.double().softmax(-1).cumsum(-1)
                    token = int((cumulative <= uniforms[len(turn)]).sum())
                logprobs.append(float(logits.log_softmax(-1)[token]))
                turn.append(token)
            self.held[slot] += turn
            turns.append((np.array(turn), np.array(logprobs)))
        return turns


def play(generator, seed, num_slots=5, num_turns=4, slot_seed=0, first_episode=0):
    """Random prompts, observations, limits and departures; every turn that was sampled."""
    rng = np.random.default_rng(seed)
    generator.start(num_slots, slot_seed, first_episode)
    slots = list(range(num_slots))

    def ids(low, high):
        return rng.integers(2, CODEC.vocab_size, rng.integers(low, high))

    generator.extend(slots, [ids(1, 9) for _ in slots])
    turns = []
    for _ in range(num_turns):
        asked = rng.permutation(slots)[: rng.integers(1, num_slots + 1)].tolist()
        limits = rng.integers(1, 15, len(asked)).tolist()
        turns += generator.sample(asked, limits)
        observed = rng.permutation(asked)[: rng.integers(1, len(asked) + 1)].tolist()
        generator.extend(observed, [ids(0, 7) for _ in observed])
        if rng.random() < 0.5:  # one episode ends, and another begins in its slot
            ended = [int(rng.choice(slots))]
            generator.drop(ended)
            generator.extend(ended, [ids(1, 9)])
    return turns


def engines(model):
    return [CachedGenerator, FastGenerator] if FastGenerator.knows(model) else [CachedGenerator]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(1.0, False), (0.7, False), (1.0, True)]), st.data())
def test_the_cache_changes_nothing(model, seed, how, data):
    temperature, greedy = how
    engine = data.draw(st.sampled_from(engines(model)))
    cached, uncached = (
        play(engine(model, CODEC, temperature=temperature, greedy=greedy), seed, slot_seed=seed, first_episode=seed % 9)
        for engine in (engine, UncachedGenerator)
    )
    for (ids, logprobs), (expected_ids, expected_logprobs) in zip(cached, uncached, strict=True):
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(logprobs, expected_logprobs, rtol=0, atol=1e-4)
        assert (ids.dtype, logprobs.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("engine", ["simple", "auto"])
def test_sampled_logprobs_equal_those_of_training(model, engine):
    generator = make_generator(model, CODEC, engine=engine, temperature=0.8)
    generator.start(4, seed=3)
    pieces = [[np.array([7, 8, 6, 7][: slot + 1])] for slot in range(4)]
    sampled = [[np.zeros(slot + 1)] for slot in range(4)]
    generator.extend(range(4), [slot_pieces[0] for slot_pieces in pieces])
    for turn in range(3):
        for slot, (ids, logprobs) in enumerate(generator.sample(range(4), [9, 3, 5, 1])):
            observation = np.array([6, 7, 8][:turn], dtype=np.int64)
            generator.extend([slot], [observation])
            pieces[slot] += [ids, observation]
            sampled[slot] += [logprobs, np.zeros(turn)]
    for slot in range(4):
        token_ids = torch.from_numpy(np.concatenate(pieces[slot]))[None]
        expected = torch.from_numpy(np.concatenate(sampled[slot]))[None].float()
        loss_mask = expected != 0
        scores = evaluate_tokens(
            model, token_ids, torch.ones_like(loss_mask), loss_mask, 0.8, vocab_size=CODEC.vocab_size
        )
        torch.testing.assert_close(scores.logprobs, expected, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def small_llama():
    return small_models.llama(PADDED)


@pytest.fixture(params=[CachedGenerator, FastGenerator])
def engine(request):
    return request.param


class TestTurns:
    def test_a_turn_ends_where_the_protocol_says(self, small_llama, engine):
        generator = engine(small_llama, CODEC)
        generator.start(64, seed=0)
        generator.extend(range(64), [np.array([7])] * 64)
        limits = [12] * 32 + [3] * 32
        ends = set()
        for (ids, _), limit in zip(generator.sample(range(64), limits), limits, strict=True):
            assert 1 <= ids.size <= limit
            before, text = CODEC.decode(ids[:-1]), CODEC.decode(ids)
            assert not closes_turn(before)
            assert CODEC.eos_id not in ids[:-1]
            end = "tag" if closes_turn(text) else "eos" if ids[-1] == CODEC.eos_id else "limit"
            assert end != "limit" or ids.size == limit
            ends.add(end)
        assert ends == {"tag", "eos", "limit"}

    def test_same_seed_same_tokens_another_seed_other_tokens(self, small_llama, engine):
        generator = engine(small_llama, CODEC)
        first, again, other = (play(generator, seed=1, slot_seed=s) for s in (5, 5, 6))
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
            np.testing.assert_array_equal(a.logprobs, b.logprobs)
        assert any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(first, other, strict=True))

    def test_a_slot_does_not_depend_on_the_others(self, small_llama, engine):
        generator = engine(small_llama, CODEC)

        def two_turns_of_slot_2(num_slots, others, limit_of_others):
            generator.start(num_slots, seed=9)
            slots = [*others, 2]
            generator.extend(slots, [np.array([7, 8, 7])] * len(slots))
            limits = [limit_of_others] * len(others) + [10]
            first = generator.sample(slots, limits)[-1]
            return np.concatenate((first.token_ids, generator.sample(slots, limits)[-1].token_ids))

        alone = two_turns_of_slot_2(3, [], 1)
        assert alone.size > 4
        np.testing.assert_array_equal(two_turns_of_slot_2(6, [0, 1, 3, 4, 5], 12), alone)
        np.testing.assert_array_equal(two_turns_of_slot_2(7, [5, 0], 3), alone)

    def test_an_episode_may_be_in_any_slot(self, small_llama, engine):
        generator = engine(small_llama, CODEC)

        def first_turns(num_slots, first_episode):
            generator.start(num_slots, seed=4, first_episode=first_episode)
            generator.extend(range(num_slots), [np.array([7, 8])] * num_slots)
            return [turn.token_ids.tolist() for turn in generator.sample(range(num_slots), [9] * num_slots)]

        whole = first_turns(6, 0)
        assert len({*map(tuple, whole)}) > 1
        assert first_turns(4, 2) == whole[2:]
        assert first_turns(2, 0) == whole[:2]

    @pytest.mark.parametrize("top_p", [1.0, 0.8, 0.4])
    def test_samples_follow_the_distribution_of_the_nucleus(self, small_llama, engine, top_p):
        num_slots = 2000
        generator = engine(small_llama, CODEC, top_p=top_p)
        generator.start(num_slots, seed=1)
        generator.extend(range(num_slots), [np.array([7, 8])] * num_slots)
        turns = generator.sample(range(num_slots), [1] * num_slots)
        with torch.no_grad():
            logits = small_llama(input_ids=torch.tensor([[7, 8]])).logits[0, -1, : CODEC.vocab_size]
        kept = nucleus_reference(logits.softmax(-1).tolist(), top_p)
        counts = np.bincount([turn.token_ids[0] for turn in turns], minlength=CODEC.vocab_size)
        expected = num_slots * np.array(kept) / sum(kept)
        assert not counts[expected == 0].any()
        chi_squared = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
        assert chi_squared < 26.1  # the 0.999 quantile for 8 degrees of freedom, more than for fewer; the seed is fixed
        # Log-probabilities are those of the whole distribution, whatever was cut off.
        for turn in turns[:50]:
            expected_logprob = logits.log_softmax(-1)[turn.token_ids[0]].item()
            assert turn.logprobs[0] == pytest.approx(expected_logprob, abs=1e-5)

    def test_samples_follow_the_distribution(self, small_llama, engine):
        num_slots = 4000
        generator = engine(small_llama, CODEC, temperature=1.3)
        generator.start(num_slots, seed=0)
        generator.extend(range(num_slots), [np.array([7, 8])] * num_slots)
        turns = generator.sample(range(num_slots), [1] * num_slots)
        counts = np.bincount([turn.token_ids[0] for turn in turns], minlength=CODEC.vocab_size)
        with torch.no_grad():
            logits = small_llama(input_ids=torch.tensor([[7, 8]])).logits[0, -1, : CODEC.vocab_size]
        expected = num_slots * (logits / 1.3).softmax(-1).double().numpy()
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert chi_squared < 26.1  # the 0.999 quantile for 8 degrees of freedom; the seed is fixed

    def test_every_token_is_fed_once(self, small_llama, monkeypatch):
        fed = []
        forward = small_llama.forward

        def counting_forward(input_ids, attention_mask, **options):
            fed.append(int(attention_mask[:, -input_ids.shape[1] :].sum()))
            return forward(input_ids=input_ids, attention_mask=attention_mask, **options)

        generator = CachedGenerator(small_llama, CODEC)
        monkeypatch.setattr(small_llama, "forward", counting_forward)
        generator.start(3, seed=0)
        generator.extend(range(3), [np.array([7, 8, 7, 8][: slot + 1]) for slot in range(3)])
        given_tokens = 1 + 2 + 3
        for _ in range(4):
            given_tokens += sum(turn.token_ids.size for turn in generator.sample(range(3), [2, 9, 9]))
            generator.extend([0, 1], [np.array([8]), np.array([7, 6])])
            given_tokens += 3
        # Not yet seen: the last observations and, in each slot, the last sampled token.
        assert sum(fed) == given_tokens - 3 - 3


def nucleus_reference(probs, top_p):
    """One token after the other, the most probable first (of equals, the first), until ``top_p`` is reached."""
    kept, total = [0.0] * len(probs), 0.0
    for i in sorted(range(len(probs)), key=lambda i: -probs[i]):
        if total >= top_p:
            break
        kept[i] = probs[i]
        total += probs[i]
    return kept


class TestNucleus:
    @given(st.lists(st.integers(1, 64), min_size=1, max_size=8), st.integers(1, 64))
    def test_equals_the_loop(self, parts, sixty_fourths):
        """Dyadic probabilities, so that sums are exact and ties happen; several rows at once."""
        size = 2 ** int(np.ceil(np.log2(sum(parts))))
        row = [part / size for part in parts] + [1 - sum(parts) / size]
        rows = [row, row[::-1]]
        top_p = sixty_fourths / 64
        expected = [probs if top_p == 1 else nucleus_reference(probs, top_p) for probs in rows]
        assert nucleus(torch.tensor(rows, dtype=torch.float64), top_p).tolist() == expected

    def test_closed_forms(self):
        probs = torch.tensor([[0.125, 0.5, 0.25, 0.125]])
        for top_p, expected in (
            (0.1, [0, 0.5, 0, 0]),
            (0.5, [0, 0.5, 0, 0]),
            (0.51, [0, 0.5, 0.25, 0]),
            (0.8, [0.125, 0.5, 0.25, 0]),
            (0.9, [0.125, 0.5, 0.25, 0.125]),
        ):
            assert nucleus(probs, top_p)[0].tolist() == expected
        assert nucleus(probs, 1.0) is probs


class TestMisuse:
    @pytest.mark.parametrize("top_p", [0.0, -0.1, 1.1, float("nan")])
    def test_top_p(self, small_llama, engine, top_p):
        with pytest.raises(OptionError, match="top_p above 0 and at most 1"):
            engine(small_llama, CODEC, top_p=top_p)

    def test_nothing_to_go_on_from(self, small_llama, engine):
        generator = engine(small_llama, CODEC)
        generator.start(3, seed=0)
        generator.extend([0, 1], [np.array([7]), np.array([8])])
        with pytest.raises(OptionError, match=r"empty slots \[2\]"):
            generator.sample([0, 2], [5, 5])
        generator.drop([1])
        with pytest.raises(OptionError, match=r"empty slots \[1\]"):
            generator.sample([0, 1], [5, 5])

    @pytest.mark.parametrize("max_tokens", [[0], [-1], [3, 3]])
    def test_max_tokens(self, small_llama, engine, max_tokens):
        generator = engine(small_llama, CODEC)
        generator.start(1, seed=0)
        generator.extend([0], [np.array([7])])
        with pytest.raises(OptionError, match="max_tokens"):
            generator.sample([0], max_tokens)

    def test_one_piece_per_slot(self, small_llama, engine):
        generator = engine(small_llama, CODEC)
        generator.start(2, seed=0)
        with pytest.raises(ValueError, match="zip"):
            generator.extend([0, 1], [np.array([7])])
