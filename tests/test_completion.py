"""The completer that runs here: batched, cached completions against one-by-one ones that feed everything again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import small_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.local_completion import LocalCompleter
from agents.models import load_model
from search_gym import ByteCodec, HFCodec
from search_gym.completion import Completer, CompletionError, Prompt, cut_at
from search_gym.errors import OptionError

CODEC = ByteCodec()
MODELS = {
    "llama": small_models.llama(CODEC.vocab_size),
    "gpt2": small_models.gpt2(CODEC.vocab_size),
    "sliding": small_models.sliding(CODEC.vocab_size),
    "padded embedding": small_models.llama(CODEC.vocab_size + 6),
}
TEXTS = st.text("abc <>?\n", min_size=1, max_size=12)


def slow_scores(model, ids, temperature):
    """Log-probabilities of the next token, from the whole sequence at once."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1, : CODEC.vocab_size]
    return (logits.double() / temperature).log_softmax(dim=-1)


def slow_greedy(completer, prompt, stop, max_tokens):
    """One token at a time, without a cache, until the decoded text holds a stop string."""
    ids, sampled, logprob = completer.encode(prompt).tolist(), [], 0.0
    while len(sampled) < max_tokens:
        scores = slow_scores(completer.model, ids + sampled, 1.0)
        sampled.append(int(scores.argmax()))
        logprob += float(scores[sampled[-1]])
        if sampled[-1] in completer.eos_ids:
            return CODEC.decode(sampled[:-1]), len(sampled), "stop", logprob / len(sampled)
        text, found = cut_at(CODEC.decode(sampled), stop)
        if found:
            return text, len(sampled), "stop", logprob / len(sampled)
    return CODEC.decode(sampled), len(sampled), "length", logprob / len(sampled)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=15)
@given(messages=st.lists(TEXTS, min_size=1, max_size=4), stop=st.lists(TEXTS, max_size=2), length=st.integers(1, 12))
def test_batched_and_cached_is_one_by_one_from_scratch(name, messages, stop, length):
    completer = LocalCompleter(MODELS[name], CODEC, batch_size=3)
    prompts = [Prompt(message, "so:" * (i % 2)) for i, message in enumerate(messages)]
    found = completer.complete(prompts, stop=stop, max_tokens=length)
    for prompt, completion in zip(prompts, found, strict=True):
        text, num_tokens, reason, logprob = slow_greedy(completer, prompt, stop, length)
        assert (completion.text, completion.num_tokens, completion.finish_reason) == (text, num_tokens, reason)
        assert completion.mean_logprob == pytest.approx(logprob, abs=1e-4)
        assert not any(string in completion.text for string in stop)


def most_likely_text(length=6):
    """What the model goes on with after "ab", without a stop string."""
    (completion,) = LocalCompleter(MODELS["llama"], CODEC).complete([Prompt("ab")], max_tokens=length)
    return completion


def test_a_stop_string_ends_the_text_with_the_token_that_completes_it():
    free = most_likely_text()
    assert free.finish_reason == "length"
    for stop in {free.text[1:3], free.text[2:3], free.text}:
        (completion,) = LocalCompleter(MODELS["llama"], CODEC).complete([Prompt("ab")], stop=[stop], max_tokens=6)
        assert completion.finish_reason == "stop"
        assert completion.text == free.text[: free.text.index(stop)]
        complete_at = next(n for n in range(1, 7) if stop in free.text[:n] or n == 6)
        assert completion.num_tokens == complete_at


@settings(max_examples=20)
@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_text_is_cut_at_the_first_stop_string(text, stop):
    positions = [i for i in range(len(text)) if any(text[i:].startswith(string) for string in stop)]
    assert cut_at(text, stop) == (text[: min(positions)] if positions else text, bool(positions))


def test_sampling_depends_on_seed_and_prompt_and_not_on_the_batch():
    prompts = [Prompt(text) for text in ("ab", "a longer prompt", "c")]

    def texts(order, **options):
        completer = LocalCompleter(MODELS["llama"], CODEC, temperature=1.5, **options)
        return [completion.text for completion in completer.complete([prompts[i] for i in order], max_tokens=10)]

    together = texts([0, 1, 2])
    assert texts([2, 0, 1]) == [together[2], together[0], together[1]]
    assert texts([0, 1, 2], batch_size=1) == together
    assert texts([0, 1, 2], seed=1) != together


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_samples_have_the_distribution_of_the_tempered_model(temperature):
    """Each token's count is binomial; 5 standard deviations for 258 tokens fail by chance once in 7,000 runs."""
    model, count = MODELS["llama"], 1500
    expected = slow_scores(model, CODEC.encode("ab").tolist(), temperature).exp().numpy()
    counts = np.zeros(CODEC.vocab_size)
    for seed in range(count):
        completer = LocalCompleter(model, CODEC, temperature=temperature, seed=seed)
        points = torch.from_numpy(completer._uniforms(CODEC.encode("ab"), 1))
        logits = torch.from_numpy(np.log(expected)[None] * temperature).float()
        counts[int(completer._choose(logits, points)[0])] += 1
    deviations = np.sqrt(count * expected * (1 - expected))
    assert (np.abs(counts - count * expected) <= 5 * deviations + 1).all()
    (completion,) = completer.complete([Prompt("ab")], max_tokens=1)
    logits = torch.from_numpy(np.log(expected)[None] * temperature).float()
    token = int(completer._choose(logits, points)[0])
    assert completion.mean_logprob == pytest.approx(math.log(expected[token]), abs=1e-3)


@pytest.mark.parametrize("name", MODELS)
@given(
    message=TEXTS,
    options=st.lists(TEXTS, min_size=2, max_size=4, unique_by=str.strip).filter(lambda o: all(map(str.strip, o))),
)
@settings(max_examples=15)
def test_options_are_as_likely_as_the_product_of_their_tokens(name, message, options):
    completer = LocalCompleter(MODELS[name], CODEC)
    (found,) = completer.option_logprobs([Prompt(message)], options)
    for option, logprob in zip(options, found, strict=True):
        ids, total = completer.encode(Prompt(message)).tolist(), 0.0
        for token in CODEC.encode(option).tolist():
            total += float(slow_scores(completer.model, ids, 1.0)[token])
            ids.append(token)
        assert logprob == pytest.approx(total, abs=1e-4)


def test_options_of_one_token_take_a_shorter_way_to_the_same_numbers():
    completer = LocalCompleter(MODELS["llama"], CODEC)
    prompts = [Prompt("ab"), Prompt("a longer one"), Prompt("c")]
    short = completer.option_logprobs(prompts, ["x", "y"])
    long = completer.option_logprobs(prompts, ["x", "y", "zzz"])
    for few, many in zip(short, long, strict=True):
        assert few == pytest.approx(many[:2], abs=1e-5)
    assert len({few[0] for few in short}) == 3


def test_a_prompt_is_the_message_then_the_reply():
    completer = LocalCompleter(MODELS["llama"], CODEC)
    assert isinstance(completer, Completer)
    assert CODEC.decode(completer.encode(Prompt("Who?\n", "Answer:"))) == "Who?\nAnswer:"


@pytest.fixture
def tokenizer():
    tokenizer = small_models.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": ["<user>", "[Yes]", "[No]"]})
    return tokenizer


TEMPLATE = "<user> {{ messages[0]['content'] }} <eos>"


def test_a_chat_template_wraps_the_message_and_the_reply_comes_after_it(tokenizer):
    tokenizer.chat_template = TEMPLATE
    codec = HFCodec(tokenizer)
    completer = LocalCompleter(small_models.llama(codec.vocab_size), codec)

    def words(prompt):
        return tokenizer.convert_ids_to_tokens(completer.encode(prompt).tolist())

    assert words(Prompt("who is", "answer")) == ["<user>", "who", "is", "<eos>", "answer"]
    assert words(Prompt("who is", "answer", chat=False)) == ["who", "is", "answer"]
    assert "<user>" not in words(Prompt("<user> who", chat=False))


def test_only_control_strings_are_special_tokens(tokenizer):
    codec = HFCodec(tokenizer)
    completer = LocalCompleter(small_models.llama(codec.vocab_size), codec)
    prompt = Prompt("who [No]", "[Yes] answer", chat=False, control=("[Yes]",))
    words = tokenizer.convert_ids_to_tokens(completer.encode(prompt).tolist())
    assert words[0] == "who"
    assert words[-2:] == ["[Yes]", "answer"]
    assert "[No]" not in words
    both = Prompt("who", chat=False, control=("[Yes]", "[No]"))
    ((yes, no),) = completer.option_logprobs([both], ["[Yes]", "[No]"])
    scores = completer.model(input_ids=torch.from_numpy(completer.encode(both))[None]).logits[0, -1]
    expected = scores.log_softmax(-1)[torch.from_numpy(codec.encode("[Yes][No]", allow_special=True))]
    assert (yes, no) == pytest.approx(tuple(expected.tolist()), abs=1e-5)
    with pytest.raises(CompletionError, match=r"special token '\[Maybe\]', got one that spells it in \d+ tokens"):
        completer.option_logprobs([Prompt("who", chat=False, control=("[Maybe]",))], ["[Maybe]", " who"])


def test_a_text_begins_as_the_tokenizer_begins_one(tokenizer, tmp_path):
    """A tokenizer that opens texts with BOS does so here too, except inside a chat template, which has its own."""
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    spec = json.loads(path.read_text())
    bos = tokenizer.bos_token_id
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [bos], "tokens": ["<bos>"]}},
    }
    path.write_text(json.dumps(spec))
    codec = HFCodec.from_pretrained(tmp_path)
    model = small_models.llama(codec.vocab_size)
    assert LocalCompleter(model, codec).encode(Prompt("who")).tolist() == [bos, *codec.encode("who")]
    codec.tokenizer.chat_template = TEMPLATE
    chat = LocalCompleter(model, HFCodec(codec.tokenizer))
    assert bos not in chat.encode(Prompt("who"))
    assert chat.encode(Prompt("who", chat=False))[0] == bos


def test_every_token_that_the_model_says_ends_a_text_does():
    model = small_models.llama(CODEC.vocab_size)
    free = most_likely_text()
    second = CODEC.encode(free.text)[1]
    model.generation_config.eos_token_id = [0, int(second)]
    (completion,) = LocalCompleter(model, CODEC).complete([Prompt("ab")], max_tokens=6)
    first = CODEC.encode(free.text).tolist().index(second)
    assert completion[:3] == (free.text[:first], first + 1, "stop")


def test_a_model_directory_completes(tmp_path):
    tokenizer = small_models.tokenizer()
    small_models.llama(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, codec = load_model(tmp_path)
    (completion,) = LocalCompleter(model, codec).complete([Prompt("who is")], max_tokens=4)
    assert 1 <= completion.num_tokens <= 4


def test_what_cannot_be_asked():
    completer = LocalCompleter(MODELS["gpt2"], CODEC)  # 128 positions
    with pytest.raises(CompletionError, match="1 to 128 tokens, 9 for the completion included, got 120 without them"):
        completer.complete([Prompt("a" * 120)], max_tokens=9)
    assert completer.complete([Prompt("a" * 120)], max_tokens=8)[0].num_tokens <= 8
    with pytest.raises(CompletionError, match="longer context"):
        completer.option_logprobs([Prompt("a" * 127)], ["ab", "c"])
    with pytest.raises(CompletionError, match="got 0"):
        completer.complete([Prompt("")], max_tokens=1)
    assert completer.complete([], max_tokens=1) == []
    for wrong in ({"max_tokens": 0}, {"max_tokens": 1, "stop": [""]}):
        with pytest.raises(OptionError, match="max_tokens >= 1 and no empty stop string"):
            completer.complete([Prompt("a")], **wrong)
    for options in (["a"], ["a", " a"], ["a", " "]):
        with pytest.raises(OptionError, match="two or more different options"):
            completer.option_logprobs([Prompt("a")], options)
    with pytest.raises(OptionError, match="control strings only with chat=False"):
        Prompt("a", control=("[Yes]",))
    for wrong in ({"temperature": -1.0}, {"temperature": math.nan}, {"batch_size": 0}):
        with pytest.raises(OptionError, match="temperature >= 0 and batch_size >= 1"):
            LocalCompleter(MODELS["gpt2"], CODEC, **wrong)
