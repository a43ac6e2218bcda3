"""Rollouts against a slow reference: one environment, one question at a time."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.generation import SampledTurn, WholeTurns, make_generator
from agents.rollout import Rollout, TurnEvent, _Play, collate, collect, collect_waves
from agents.tiny import TinyConfig, TinyForCausalLM
from search_gym import ByteCodec, Document, Question, SearchGymError, Span
from search_gym.codec import WordCodec
from search_gym.errors import PartialRetrievalError, RetrievalError

CODEC = ByteCodec()
TURNS = {
    "search": "<search>capital</search>",
    "failing": "<search>fail</search>",
    "answer": "<answer>right</answer>",
    "wrong": "<think>well</think><answer>wrong</answer>",
    "babble": "so it goes\x00",  # the last character stands for EOS
    "endless": "on and on" * 20,
}


def encode(text):
    """Bytes, with EOS in the place of \\x00."""
    ids = CODEC.encode(text)
    return np.where(ids == 0, CODEC.eos_id, ids)


class StubRetriever:
    def search(self, queries, k):
        found = [[Document(str(i), f"Title {i}", f"about {query}") for i in range(k)] for query in queries]
        if "fail" in queries:
            results = [
                RetrievalError("no") if query == "fail" else one for query, one in zip(queries, found, strict=True)
            ]
            raise PartialRetrievalError("some failed", results)
        return found


class ScriptedGenerator(WholeTurns):
    """Writes the turns that ``scripts`` holds for a question, and tells every token's number as its log-probability."""

    def __init__(self, scripts, change=lambda ids: ids):
        self.scripts = scripts
        self.change = change
        self.starts, self.placed = [], []
        self.finished = []

    def start(self, num_slots, seed, first_episode=0):
        self.starts.append((num_slots, seed, first_episode))
        self.held = [None] * num_slots

    def release(self):
        pass

    def place(self, slots, episodes):
        for slot in slots:
            assert self.held[slot] is None, "the slot is taken"
            self.held[slot] = []
        self.placed += episodes

    def extend(self, slots, token_ids):
        for slot, ids in zip(slots, token_ids, strict=True):
            self.held[slot].append(("given", ids))

    def sample(self, slots, max_tokens):
        samples = []
        for slot, limit in zip(slots, max_tokens, strict=True):
            question = CODEC.decode(self.held[slot][0][1])
            turn = sum(author == "sampled" for author, _ in self.held[slot])
            ids = self.change(encode(TURNS[self.scripts[question][turn]])[:limit])
            self.held[slot].append(("sampled", ids))
            samples.append(SampledTurn(ids, logprobs_of(turn, len(ids))))
        return samples

    def drop(self, slots):
        for slot in slots:
            self.finished.append(np.concatenate([ids for _, ids in self.held[slot]]))
            self.held[slot] = None


def logprobs_of(turn, count):
    return -(100 * turn + np.arange(count)).astype(np.float32)


def make(scripts, num_envs=None, **limits):
    questions = [Question(name, name, ("right",), {"kind": "stub"}) for name in scripts]
    options = {
        "questions": questions,
        "retriever": StubRetriever(),
        "on_retrieval_error": "observe",
        "codec": CODEC,
        "prompt_fn": str,
        "max_turns": 2,
        "max_turn_tokens": 60,
        **limits,
    }
    if num_envs is None:
        return gym.make("search_gym/SearchQA-v0", **options).unwrapped
    return gym.make_vec("search_gym/SearchQA-v0", num_envs=num_envs, **options)


def reference(scripts, index, **limits):
    """What `collect` should return for one question, from the single environment."""
    env = make(scripts, **limits)
    prompt, _ = env.reset(options={"question_index": index})
    turns, logprobs, num_failures, ended = [], [], 0, False
    while not ended:
        ids = encode(TURNS[scripts[CODEC.decode(prompt)][len(turns)]])[: env.episode.turn_tokens_left]
        logprobs.append(logprobs_of(len(turns), len(ids)))
        _, reward, terminated, truncated, info = env.step(ids)
        turns.append(TurnEvent(info["event"], info["content"]))
        num_failures += info["retrieval_failed"]
        ended = terminated or truncated
    transcript = env.transcript
    return Rollout(
        question=env.episode.question,
        question_index=index,
        token_ids=transcript.token_ids,
        spans=transcript.spans,
        loss_mask=transcript.loss_mask,
        logprobs=np.concatenate(logprobs),
        reward=float(reward),
        terminated=terminated,
        truncated=truncated,
        turns=tuple(turns),
        num_searches=info["num_searches"],
        num_retrieval_failures=num_failures,
    ), info


def assert_same(one, two):
    for name in Rollout.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


scripts_strategy = st.lists(
    st.lists(st.sampled_from(sorted(TURNS)), min_size=3, max_size=3), min_size=1, max_size=6
).map(lambda lists: {f"question {i}?": script for i, script in enumerate(lists)})


@settings(max_examples=60)
@given(scripts=scripts_strategy, data=st.data(), max_context=st.sampled_from([4096, 300, 150]))
def test_collect_is_the_single_environment_question_by_question(scripts, data, max_context):
    index = data.draw(st.lists(st.integers(0, len(scripts) - 1), min_size=1, max_size=8))
    num_envs, overlap = data.draw(st.integers(1, len(index))), data.draw(st.booleans())
    generator = ScriptedGenerator(scripts)
    done = []
    envs = make(scripts, num_envs, max_context_tokens=max_context)
    rollouts = collect(envs, generator, index, seed=5, on_progress=done.append, overlap=overlap)
    envs.close()
    assert [rollout.question_index for rollout in rollouts] == index
    for rollout in rollouts:
        expected, info = reference(scripts, rollout.question_index, max_context_tokens=max_context)
        assert_same(rollout, expected)
        assert rollout.answer == (info["content"] if info["end_reason"] == "answered" else None)
    # What a generator was given and sampled, in order, is the transcript: a cache is always a prefix of it.
    fed = sorted(tuple(ids) for ids in generator.finished)
    assert fed == sorted(tuple(rollout.token_ids) for rollout in rollouts)
    assert generator.starts == [(num_envs, 5, 0)]
    assert generator.placed == list(range(len(index)))
    assert done == sorted(done)
    assert done[-1] == len(index)


class Whenever(StubRetriever):
    """Answers after as many moments as a seeded generator says, often while somebody looks whether it has."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def search(self, queries, k):
        for _ in range(self.rng.integers(0, 2000)):
            pass
        return super().search(queries, k)


def test_no_answer_is_lost_that_comes_while_somebody_looks():
    """Many searches in the background, with documents that arrive at any moment; an episode that is forgotten would
    never end."""
    scripts = {f"question {i}?": ["search", "search", "answer"] for i in range(6)}
    envs = make(scripts, 3, retriever=Whenever())
    for seed in range(40):
        rollouts = collect(envs, ScriptedGenerator(scripts), list(range(6)), seed=seed, overlap=True)
        assert [rollout.num_searches for rollout in rollouts] == [2] * 6
    envs.close()


class TurnsReady:
    """A step whose documents are there when it has been asked ``after`` times."""

    def __init__(self, after):
        self.after = after

    @property
    def is_ready(self):
        self.after -= 1
        return self.after < 0


def test_whether_documents_are_there_is_asked_once():
    play = _Play.__new__(_Play)
    taken = []
    play._take = lambda sent, turns: taken.append(sent)
    steps = [TurnsReady(after) for after in (0, 1, 2, 5)]
    play._sent = [(step, {}) for step in steps]
    for _ in range(6):
        play.receive(wait=False)
    assert taken == steps


def test_waves_come_one_at_a_time():
    scripts = {f"question {i}?": ["answer"] for i in range(5)}
    generator = ScriptedGenerator(scripts)
    waves = collect_waves(make(scripts, 2), generator, range(5), seed=0)
    assert generator.starts == []
    assert [rollout.question_index for rollout in next(waves)] == [0, 1]
    assert generator.starts == [(2, 0, 0)]
    assert [[rollout.question_index for rollout in wave] for wave in waves] == [[2, 3], [4]]


def test_log_probabilities_belong_to_the_tokens_that_they_were_sampled_with():
    scripts = {"q?": ["search", "babble", "answer"]}
    (rollout,) = collect(make(scripts, 1), ScriptedGenerator(scripts), [0], seed=0)
    batch = collate([rollout], CODEC.pad_id)
    actions = [span for span in rollout.spans if span.kind == "action"]
    assert [TURNS[name] for name in scripts["q?"]] == [
        CODEC.decode(rollout.token_ids[start:stop]).replace("<eos>", "\x00") for _, start, stop in actions
    ]
    for turn, (_, start, stop) in enumerate(actions):
        assert batch.old_logprobs[0, start:stop].tolist() == logprobs_of(turn, stop - start).tolist()


def test_a_search_in_the_last_turn_is_not_counted():
    scripts = {"q?": ["search", "search", "search"]}
    (rollout,) = collect(make(scripts, 1), ScriptedGenerator(scripts), [0], seed=0)
    assert (rollout.num_searches, rollout.truncated, rollout.answer, rollout.reward) == (2, True, None, 0.0)
    assert [turn.content for turn in rollout.turns] == ["capital"] * 3


@pytest.mark.parametrize(
    "change",
    [lambda ids: np.concatenate((ids, encode(" and more"))), lambda ids: ids[:-1]],
    ids=["beyond the end", "before the end"],
)
def test_a_generator_that_does_not_stop_where_the_turn_ends_is_refused(change):
    scripts = {"q?": ["answer"]}
    with pytest.raises(SearchGymError, match="stop where the turn ends"):
        collect(make(scripts, 1), ScriptedGenerator(scripts, change), [0], seed=0)


def test_fewer_questions_than_environments_are_refused():
    scripts = {"q?": ["answer"]}
    with pytest.raises(ValueError, match=r"at least 2 questions.*got 1"):
        collect(make(scripts, 2), ScriptedGenerator(scripts), [0], seed=0)


def test_the_seed_decides_every_token():
    words = WordCodec(["w", "x", "y", "z"])
    torch.manual_seed(0)
    model = TinyForCausalLM(TinyConfig(vocab_size=words.vocab_size, hidden_size=16, num_hidden_layers=2))
    questions = [Question(str(i), "w x", ("y",)) for i in range(3)]
    envs = gym.make_vec(
        "search_gym/SearchQA-v0", num_envs=3, questions=questions, retriever=StubRetriever(), codec=words, prompt_fn=str
    )
    generator = make_generator(model, words)
    one, same, other = (collect(envs, generator, range(3), seed=seed) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        assert_same(a, b)
    assert any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(one, other, strict=True))
    # Slots that ask the same question do not sample the same tokens.
    assert len({tuple(rollout.token_ids) for rollout in one}) == 3


@pytest.fixture(scope="module", params=["simple", "fast"])
def small_policy(request):
    words = WordCodec(["w", "x", "y", "z"])
    torch.manual_seed(0)
    model = TinyForCausalLM(TinyConfig(vocab_size=words.vocab_size, hidden_size=16, num_hidden_layers=2))
    questions = [Question(str(i), "w x y z"[: 1 + 2 * i], ("y",)) for i in range(4)]

    def play(num_envs, index, first_episode=0):
        options = {"questions": questions, "retriever": StubRetriever(), "codec": words, "prompt_fn": str}
        limits = {"max_turns": 2, "max_turn_tokens": 6}
        envs = gym.make_vec("search_gym/SearchQA-v0", num_envs=num_envs, **options, **limits)
        generator = make_generator(model, words, engine=request.param)
        return collect(envs, generator, index, seed=3, first_episode=first_episode)

    return play


def assert_same_episodes(some, others):
    """The same tokens; log-probabilities as far as float32 sums over padded columns agree."""
    for one, other in zip(some, others, strict=True):
        assert one.question_index == other.question_index
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-5)


INDEX = [0, 3, 1, 2, 2, 0, 3, 1, 0]


@pytest.mark.parametrize("num_envs", [1, 2, 4, 9])
def test_the_number_of_environments_changes_nothing(small_policy, num_envs):
    expected = small_policy(5, INDEX)
    assert len({tuple(rollout.token_ids) for rollout in expected}) == len(INDEX)
    assert_same_episodes(small_policy(num_envs, INDEX), expected)


@pytest.mark.parametrize("first", [1, 4, 7])
def test_a_part_of_the_episodes_is_the_same_wherever_it_is_played(small_policy, first):
    """What a process plays of a round is what one process alone would have played there."""
    whole = small_policy(4, INDEX)
    assert_same_episodes(small_policy(2, INDEX[first:], first_episode=first), whole[first:])
    elsewhere = small_policy(2, INDEX[first:])
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(elsewhere, whole[first:], strict=True))


spans_strategy = st.lists(st.integers(1, 5), min_size=2, max_size=6)
drawn_strategy = st.tuples(spans_strategy, st.integers(0, 2**32), st.sampled_from([0.0, 0.2, 1.0]))


def build(lengths, seed, reward):
    """A rollout whose spans, a prompt, then actions and observations in turn, have these lengths."""
    kinds = ["prompt", *(("action", "observation")[i % 2] for i in range(len(lengths) - 1))]
    stops = np.cumsum(lengths).tolist()
    spans = tuple(map(Span, kinds, [0, *stops[:-1]], stops))
    loss_mask = np.repeat([kind == "action" for kind in kinds], lengths)
    token_ids = np.random.default_rng(seed).integers(10, size=stops[-1])
    logprobs = -np.arange(1, loss_mask.sum() + 1, dtype=np.float32)
    return Rollout(
        Question("q", "q", ("a",)), 0, token_ids, spans, loss_mask, logprobs, reward, True, False, (), num_searches=0
    )


FIELDS = ("token_ids", "attention_mask", "response_mask", "loss_mask", "old_logprobs", "rewards")


@given(drawn=st.lists(drawn_strategy, min_size=1, max_size=5), pad_id=st.sampled_from([0, 99]))
def test_collate_places_every_number_at_its_token(drawn, pad_id):
    rollouts = [build(*parts) for parts in drawn]
    batch = collate(rollouts, pad_id)
    assert len(batch) == len(rollouts)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.token_ids)
        assert batch.token_ids[row, :length].tolist() == rollout.token_ids.tolist()
        assert batch.token_ids[row, length:].eq(pad_id).all()
        assert batch.attention_mask[row].tolist() == [i < length for i in range(batch.token_ids.shape[1])]
        assert batch.loss_mask[row, :length].tolist() == rollout.loss_mask.tolist()
        assert not batch.loss_mask[row, length:].any()
        written = [span.kind != "prompt" for span in rollout.spans for _ in range(span.start, span.stop)]
        assert batch.response_mask[row, :length].tolist() == written
        assert not batch.response_mask[row, length:].any()
        assert batch.old_logprobs[row][batch.loss_mask[row]].tolist() == rollout.logprobs.tolist()
        assert not batch.old_logprobs[row][~batch.loss_mask[row]].any()
        rewards = np.zeros(batch.token_ids.shape[1], dtype=np.float32)
        rewards[max(i for i in range(length) if rollout.loss_mask[i])] = rollout.reward
        assert batch.rewards[row].tolist() == rewards.tolist()


@given(drawn=st.lists(drawn_strategy, min_size=1, max_size=5), data=st.data())
def test_selecting_rows_is_collating_those_rollouts(drawn, data):
    rollouts = [build(*parts) for parts in drawn]
    rows = data.draw(st.lists(st.integers(0, len(rollouts) - 1), min_size=1, max_size=6))
    group_size = data.draw(st.integers(1, 3))
    selected = collate(rollouts, 0, group_size=group_size).select(torch.tensor(rows))
    direct = collate([rollouts[row] for row in rows], 0)
    for field in FIELDS:
        assert torch.equal(getattr(selected, field), getattr(direct, field)), field
    assert selected.group_ids.tolist() == [row // group_size for row in rows]


@given(st.integers(1, 4), st.integers(1, 4))
def test_rollouts_in_a_row_are_a_group(group_size, groups):
    batch = collate([build([1, 1], 0, 0.0)] * (groups * group_size), 0, group_size=group_size)
    assert batch.group_ids.tolist() == [group for group in range(groups) for _ in range(group_size)]


def test_collate_refuses_nothing_and_a_missing_log_probability():
    with pytest.raises(ValueError, match="at least one rollout"):
        collate([], 0)
    scripts = {"q?": ["answer"]}
    rollout, _ = reference(scripts, 0)
    count = len(TURNS["answer"])
    short = replace(rollout, logprobs=rollout.logprobs[1:])
    with pytest.raises(ValueError, match=f"each of {count} sampled tokens, got {count - 1}"):
        collate([short], 0)
