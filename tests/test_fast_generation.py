"""What the fast engine does that the simple one does not; that both say the same is tests/test_generation.py."""

from __future__ import annotations

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generation import CODEC, PADDED

from agents.fast_generation import FastGenerator
from agents.generation import CachedGenerator, make_generator
from agents.llama_decoder import LlamaDecoder
from agents.tiny_decoder import TinyDecoder
from search_gym.errors import OptionError

PROMPT = np.array([7, 8, 7, 6, 8, 8, 7, 7, 6, 8, 7, 8])


@pytest.fixture(scope="module")
def model():
    return small_models.llama(PADDED)


def play(generator, seed, num_slots=4, num_episodes=9, num_turns=3):
    """Episodes that take up slots as these become free: {episode: its turns}."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(2, CODEC.vocab_size, rng.integers(1, 20)) for _ in range(num_episodes)]
    prompts[3] = prompts[1] = prompts[0]
    observations = rng.integers(2, CODEC.vocab_size, (num_episodes, num_turns, 5))
    limits = rng.integers(1, 12, (num_episodes, num_turns)).tolist()
    generator.start(num_slots, seed)
    waiting, episode_in, turns = list(range(num_episodes)), {}, {n: [] for n in range(num_episodes)}
    free = list(range(num_slots))
    while episode_in or waiting:
        while free and waiting:
            slot, episode = free.pop(0), waiting.pop(0)
            generator.place([slot], [episode])
            generator.extend([slot], [prompts[episode]])
            generator.begin([slot], [limits[episode][0]])
            episode_in[slot] = episode
        for slot, turn in generator.advance():
            episode = episode_in[slot]
            turns[episode].append(turn)
            if len(turns[episode]) == num_turns:
                generator.drop([slot])
                free.append(slot)
                del episode_in[slot]
            else:
                done = len(turns[episode])
                generator.extend([slot], [observations[episode, done - 1]])
                generator.begin([slot], [limits[episode][done]])
    return turns


def assert_same(some, others):
    assert some.keys() == others.keys()
    for episode in some:
        for one, other in zip(some[episode], others[episode], strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_slots=st.integers(1, 6),
    steps=st.integers(1, 5),
    share=st.sampled_from([0.01, 0.5, 1.0]),
    prefill_tokens=st.sampled_from([1, 10, 1000]),
    name=st.sampled_from(["llama", "sliding", "tiny", "tiny in torch"]),
)
def test_neither_slots_nor_the_schedule_change_what_is_sampled(seed, num_slots, steps, share, prefill_tokens, name):
    model = getattr(small_models, name.split()[0])(PADDED)
    decoder = TinyDecoder(model) if name == "tiny in torch" else None
    options = {"steps": steps, "share": share, "prefill_tokens": prefill_tokens, "decoder": decoder}
    found = play(FastGenerator(model, CODEC, **options), seed, num_slots)
    assert_same(found, play(CachedGenerator(model, CODEC), seed))


@pytest.mark.parametrize("name", ["llama", "tiny"])
@pytest.mark.parametrize(
    "options", [{"top_p": 0.6}, {"temperature": 0.7}, {"temperature": 1.5, "top_p": 0.9}, {"greedy": True}]
)
def test_ways_of_sampling_are_those_of_the_simple_engine(name, options):
    model = getattr(small_models, name)(PADDED)
    engines = [make_generator(model, CODEC, engine=engine, **options) for engine in ("fast", "simple")]
    assert_same(*(play(engine, 5) for engine in engines))


def test_a_prompt_that_slots_share_is_fed_once(model, monkeypatch):
    generator = FastGenerator(model, CODEC)
    fed = []
    prefill = LlamaDecoder.prefill

    def counting(self, token_ids, chunk):
        fed.append(len(token_ids))
        prefill(self, token_ids, chunk)

    monkeypatch.setattr(LlamaDecoder, "prefill", counting)
    generator.start(5, seed=0)
    generator.extend(range(4), [PROMPT, PROMPT, PROMPT[:-1], PROMPT])
    together = generator.sample(range(4), [6] * 4)
    # All tokens but the last, which the first step takes; slot 2 begins with another beginning.
    assert fed == [2 * len(PROMPT) - 3]
    generator.extend([4], [PROMPT])
    late = generator.sample([4], [6])[0]
    assert len(fed) == 1
    simple = CachedGenerator(model, CODEC)
    simple.start(5, seed=0)
    simple.extend(range(5), [PROMPT, PROMPT, PROMPT[:-1], PROMPT, PROMPT])
    for turn, expected in zip([*together, late], simple.sample(range(5), [6] * 5), strict=True):
        np.testing.assert_array_equal(turn.token_ids, expected.token_ids)
    # A slot that has been emptied is no place to copy from.
    generator.drop(range(5))
    generator.extend([0], [PROMPT])
    generator.sample([0], [1])
    assert fed[1:] == [len(PROMPT) - 1]


class Spelling:
    """Puts a space before the ">" of a tag that follows a "w": tokens look like a tag there, their text does not."""

    pieces = ("<pad>", "<eos>", "</search", ">", "w", " ")
    pad_id, eos_id, vocab_size = 0, 1, len(pieces)

    def encode(self, text, *, allow_special=False):
        raise AssertionError("a generator has nothing to encode")

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids).replace("w</search>", "w</search >")


def test_what_only_looks_like_a_closing_tag_does_not_end_a_turn():
    """A codec whose text depends on more than its tokens one by one; the text decides."""
    codec = Spelling()
    model = small_models.llama(codec.vocab_size)
    generator = FastGenerator(model, codec, temperature=5.0)
    generator.start(200, seed=0)
    generator.extend(range(200), [np.array([4])] * 200)
    turns = generator.sample(range(200), [12] * 200)
    looked = 0
    for ids, _ in turns:
        closed = "</search>" in codec.decode(ids)
        assert closed or ids[-1] == codec.eos_id or len(ids) == 12
        looked += any((ids[n], ids[n + 1]) == (2, 3) for n in range(len(ids) - 2))  # goes on after it
    assert looked, "no turn had to go on"


def test_memory_grows_and_is_given_back(model):
    generator = FastGenerator(model, CODEC)
    long = np.tile(PROMPT, 40)

    def turn():
        generator.start(2, seed=3)
        generator.extend([0, 1], [PROMPT, long])
        return [turn.token_ids.tolist() for turn in generator.sample([0, 1], [40, 90])]

    first = turn()
    generator.release()
    assert turn() == first


def test_new_weights_are_sampled_from_at_the_next_start(model):
    changing = small_models.llama(PADDED)
    engines = [make_generator(changing, CODEC, engine=name) for name in ("fast", "simple")]
    before = [play(engine, 2) for engine in engines]
    with torch.no_grad():
        for weight in changing.parameters():
            weight += 0.2
    after = [play(engine, 2) for engine in engines]
    assert_same(*after)
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(before[0][0], after[0][0], strict=True))


def test_a_model_without_a_decoder_has_the_simple_engine():
    model = small_models.gpt2(PADDED)
    assert isinstance(make_generator(model, CODEC), CachedGenerator)
    with pytest.raises(OptionError, match=r"engine='fast', got 'gpt2'; do: use engine='simple'"):
        make_generator(model, CODEC, engine="fast")
    assert isinstance(make_generator(small_models.llama(PADDED), CODEC, engine="simple"), CachedGenerator)
    assert isinstance(make_generator(small_models.llama(PADDED), CODEC), FastGenerator)


def test_without_open_turns_there_is_nothing_to_advance(model):
    generator = FastGenerator(model, CODEC)
    generator.start(2, seed=0)
    assert generator.advance() == []
