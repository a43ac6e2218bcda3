"""The engine around vLLM, on a stand-in with the part of vLLM's interface that it uses: vLLM itself needs a GPU.

The stand-in is an engine of its own: it answers requests token by token with a real model, several at a time, stops at
strings as vLLM does, and reports log-probabilities in vLLM's form.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import small_models
import torch
from test_fast_generation import assert_same, play
from test_generation import CODEC

from agents.generation import CachedGenerator, Generator, make_generator
from search_gym.errors import MissingDependencyError, OptionError


@dataclass
class Request:
    name: str
    prompt: list[int]
    params: SimpleNamespace
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, SimpleNamespace]] = field(default_factory=list)
    finished: bool = False

    def output(self) -> SimpleNamespace:
        done = SimpleNamespace(token_ids=list(self.token_ids), logprobs=list(self.logprobs))
        return SimpleNamespace(request_id=self.name, finished=self.finished, outputs=[done])


class StandIn:
    """``vllm.LLM`` and its ``llm_engine`` in one, serving a copy of ``model`` whose weights it is given."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.llm_engine = self
        self.model = copy.deepcopy(model)
        for weight in self.model.parameters():
            torch.nn.init.zeros_(weight)
        self.requests: dict[str, Request] = {}
        self.calls: list[str] = []

    def apply_model(self, function) -> None:
        function(SimpleNamespace(load_weights=lambda pairs: self.model.load_state_dict(dict(pairs))))

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.calls.append("wake up")

    def add_request(self, request_id: str, prompt: dict, params: SimpleNamespace) -> None:
        assert request_id not in self.requests
        self.requests[request_id] = Request(request_id, list(prompt["prompt_token_ids"]), params)

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            del self.requests[name]

    @torch.no_grad()
    def step(self) -> list[SimpleNamespace]:
        return [self._next(request) for request in list(self.requests.values())]

    def _next(self, request: Request) -> SimpleNamespace:
        params = request.params
        logits = self.model(torch.tensor([request.prompt + request.token_ids])).logits[0, -1]
        if params.allowed_token_ids is not None:
            hidden = torch.ones(len(logits), dtype=torch.bool)
            hidden[params.allowed_token_ids] = False
            logits = logits.masked_fill(hidden, -torch.inf)
        logs = (logits / (params.temperature or 1.0)).log_softmax(-1)
        if params.temperature == 0:
            token = int(logs.argmax())
        else:
            randomness = torch.Generator().manual_seed(params.seed + len(request.token_ids))
            token = int(torch.multinomial(logs.exp(), 1, generator=randomness))
        request.token_ids.append(token)
        request.logprobs.append({token: SimpleNamespace(logprob=float(logs[token]))})
        text = CODEC.decode(np.array(request.token_ids))
        stops = token in params.stop_token_ids or any(stop in text for stop in params.stop)
        if stops or len(request.token_ids) == params.max_tokens:
            request.finished = True
            del self.requests[request.name]
        return request.output()


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace
    module.TokensPrompt = dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def make(model, **options):
    from agents.vllm_generation import VllmGenerator

    return VllmGenerator(model, CODEC, llm=StandIn(model), **options)


@pytest.mark.parametrize("name", ["llama", "tiny"])
def test_the_most_probable_tokens_are_those_of_the_simple_engine(name):
    """With slots that are taken up again, and a vocabulary that is larger than the codec's."""
    model = getattr(small_models, name)(CODEC.vocab_size + 3)
    engine = make(model, greedy=True)
    assert isinstance(engine, Generator)
    for seed in range(3):
        assert_same(play(engine, seed), play(CachedGenerator(model, CODEC, greedy=True), seed))


def test_log_probabilities_are_those_of_the_model_at_the_temperature():
    model = small_models.llama(CODEC.vocab_size)
    engine = make(model, temperature=0.7)
    engine.start(1, seed=0)
    prompt = np.array([7, 8, 7])
    engine.extend([0], [prompt])
    (turn,) = engine.sample([0], [8])
    ids = torch.from_numpy(np.concatenate((prompt, turn.token_ids)))
    with torch.no_grad():
        logs = (model(ids[None]).logits[0] / 0.7).log_softmax(-1)
    expected = logs[len(prompt) - 1 : -1].gather(1, ids[len(prompt) :, None])[:, 0]
    np.testing.assert_allclose(turn.logprobs, expected, rtol=0, atol=1e-5)


def test_an_episode_s_seed_is_its_own_whichever_slot_it_is_in():
    model = small_models.llama(CODEC.vocab_size)
    assert_same(play(make(model), 4, num_slots=2), play(make(model), 4, num_slots=5))
    different = [turn.token_ids.tolist() for turns in play(make(model), 5).values() for turn in turns]
    assert different != [turn.token_ids.tolist() for turns in play(make(model), 4).values() for turn in turns]


def test_weights_are_handed_over_and_old_prefixes_forgotten_at_every_start():
    model = small_models.llama(CODEC.vocab_size)
    engine = make(model, greedy=True)
    before = play(engine, 2)
    engine.release()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2
    after = play(engine, 2)
    assert_same(after, play(CachedGenerator(model, CODEC, greedy=True), 2))
    assert any(a.token_ids.tolist() != b.token_ids.tolist() for a, b in zip(before[0], after[0], strict=True))
    assert engine._llm.calls == ["reset", "sleep 1", "wake up", "reset"]


def test_a_slot_that_is_dropped_has_no_request_any_more():
    engine = make(small_models.llama(CODEC.vocab_size), greedy=True)
    engine.start(2, seed=0)
    engine.extend([0, 1], [np.array([7, 8]), np.array([8])])
    engine.begin([0, 1], [5, 5])
    engine.drop([0])
    assert len(engine._llm.requests) == 1
    found = []
    while not found:
        found = engine.advance()
    assert [slot for slot, _ in found] == [1]
    assert engine.advance() == []


def test_what_it_cannot_do_is_refused(monkeypatch):
    model = small_models.llama(CODEC.vocab_size)
    with pytest.raises(OptionError, match="expected top_p=1 with vLLM"):
        make_generator(model, CODEC, engine="vllm", top_p=0.9)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependencyError, match="vllm"):
        make_generator(model, CODEC, engine="vllm")
