"""verl: its registry, its worker's way of making and padding an episode, and its base class; no GPU, no engine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from adapter_episodes import ENV_ID, OPTIONS, run_page

pytest.importorskip("verl", reason="needs verl: make test-adapters")

import gymnasium as gym
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopWorker
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from search_gym.adapters.verl import SearchAgentLoop, dataset_rows
from search_gym.codec import HFCodec
from search_gym.errors import OptionError

TASK = {name: value for name, value in OPTIONS.items() if name != "codec"}


def make_tokenizer():
    """Bytes, and merges that spell a tag's name in one token: letters one by one are never what it encodes to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("s", "e"), ("se", "a"), ("a", "n"), ("an", "s")]
    words = ["<eos>", "<pad>", *alphabet, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


TOKENIZER = make_tokenizer()
CODEC = HFCodec(TOKENIZER)
LETTERS = [CODEC.encode(chr(i))[0] if i < 128 else 0 for i in range(128)]


def spell(text):
    """One token for each character."""
    return [int(LETTERS[ord(character)]) for character in text]


class Server(LLMServerClient):
    """Samples what it is told to, as many tokens at a time as it is let, with made-up log-probabilities."""

    def __init__(self, turns, overshoot=(), chunk=10**6):
        super().__init__(OmegaConf.create({}))
        self.turns, self.overshoot, self.chunk, self.requests = list(turns), list(overshoot), chunk, []
        self.rest = []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        self.requests.append((request_id, list(prompt_ids), dict(sampling_params)))
        ids = self.rest or [*self.turns.pop(0), *self.overshoot]
        size = min(self.chunk, sampling_params["max_tokens"])
        self.rest = ids[size:] if self.chunk < 10**6 else []
        ids = ids[:size]
        return TokenOutput(token_ids=ids, log_probs=[-0.01 * i for i in ids], extra_fields={"max_global_steps": 3})


def turns_of(task, index):
    question = task.questions[index]
    return [
        spell(f"<think>hm</think><search>{question.text}</search>"),
        [*spell("<think>"), CODEC.eos_id],
        spell(f"<answer>{question.answers[0]}</answer>"),
    ]


def play(server, index=0, *, prompt_length=1500, response_length=3000, row=None, **options):
    """As verl's worker does: make the loop from its registry, run it, pad what it returns."""
    rollout = {"prompt_length": prompt_length, "response_length": response_length}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
    worker = object.__new__(AgentLoopWorker)
    worker.config, worker.rollout_config = config, config.actor_rollout_ref.rollout
    worker.llm_client, worker.tokenizer, worker.processor = server, TOKENIZER, None
    worker.hf_model_type, worker.dataset_cls, worker.tools = None, RLHFDataset, []
    worker.reward_loop_worker_handles, worker.distillation_enabled = None, False
    worker.mm_processor_kwargs = {}

    async def main():
        from verl.experimental.agent_loop import agent_loop

        loop_config = {"_target_": "search_gym.adapters.verl.SearchAgentLoop", "env_id": ENV_ID}
        agent_loop._agent_loop_registry["search_gym"] = {**loop_config, "options": {**TASK, **options}}
        trajectory = {"step": 0, "sample_index": 0, "rollout_n": 0, "validate": False}
        row_ = {"question_index": np.int64(index), "raw_prompt": []} if row is None else row
        return await worker._run_agent_loop(
            {"temperature": 1.0}, trajectory, agent_name="search_gym", trace=False, **row_
        )

    return asyncio.run(main())


def expect(index, **options):
    env = gym.make(ENV_ID, **{**TASK, **options, "codec": CODEC}).unwrapped
    env.reset(options={"question_index": index})
    for turn in turns_of(env.task, index):
        env.step(np.array(turn))
    return env


@pytest.mark.parametrize(("chunk", "overshoot"), [(10**6, ()), (10**6, (5, 6, 7)), (9, ())])
def test_an_episode_has_the_ids_masks_and_log_probabilities_that_were_sampled(chunk, overshoot):
    env = expect(2)
    turns = turns_of(env.task, 2)
    transcript = env.transcript
    prompt_length = transcript.spans[0].stop
    ids, mask = transcript.token_ids[prompt_length:], transcript.loss_mask[prompt_length:]
    sampled = ids[mask]
    assert sampled.tolist() == [i for turn in turns for i in turn]
    assert CODEC.encode(CODEC.decode(sampled)).tolist() != sampled.tolist()

    server = Server(turns, overshoot, chunk)
    output = play(server, 2)
    size = len(ids)
    assert output.prompt_ids[0, -prompt_length:].tolist() == transcript.token_ids[:prompt_length].tolist()
    assert output.response_ids[0, :size].tolist() == ids.tolist()
    assert output.response_mask[0, :size].tolist() == mask.astype(int).tolist()
    assert output.response_mask[0, size:].sum() == 0
    np.testing.assert_allclose(output.response_logprobs[0, :size].numpy(), np.where(mask, -0.01 * ids, 0), atol=1e-5)
    assert output.reward_score == 1.0
    assert output.extra_fields["reward_extra_info"] == {"num_searches": 1, "num_turns": 3, "em": 1.0}
    assert output.extra_fields["max_global_steps"] == 3
    assert len({request_id for request_id, _, _ in server.requests}) == 1
    for _, context, params in server.requests:
        assert context == transcript.token_ids[: len(context)].tolist()
        assert params["temperature"] == 1.0
        assert params["stop"] == ["</search>", "</answer>"]


def test_the_response_length_is_kept_and_cuts_the_episode_short():
    env = expect(0)
    output = play(Server(turns_of(env.task, 0)), 0, response_length=100)
    assert output.response_ids.shape == (1, 100)
    start = env.transcript.spans[0].stop
    assert output.response_ids[0].tolist() == env.transcript.token_ids[start : start + 100].tolist()
    assert output.response_mask[0].tolist() == env.transcript.loss_mask[start : start + 100].astype(int).tolist()
    assert output.reward_score == 0.0


def test_a_generation_that_was_aborted_ends_the_episode():
    output = play(Server([spell("<search>a</search>"), []]))
    assert output.reward_score == 0.0
    assert output.extra_fields["reward_extra_info"]["num_searches"] == 1


def test_what_cannot_be_played_is_named():
    assert issubclass(SearchAgentLoop, AgentLoopBase)
    with pytest.raises(OptionError, match="the column 'question_index', got"):
        play(Server([]), row={"raw_prompt": []})
    with pytest.raises(OptionError, match=r"at most rollout\.prompt_length=10 tokens"):
        play(Server([]), prompt_length=10)
    with pytest.raises(Exception, match="options without a codec"):
        play(Server([]), codec="byte")


def test_the_data_set_has_a_row_for_each_question():
    rows = dataset_rows(ENV_ID, OPTIONS)
    assert [row["question_index"] for row in rows] == list(range(len(rows)))
    assert {row["agent_name"] for row in rows} == {"search_gym"}
    assert rows[1]["prompt"][0]["role"] == "user"


def test_verl_reads_the_data_that_the_code_of_the_page_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = run_page("verl")["rows"]
    config = OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "prompt_key": "prompt", "max_prompt_length": 512})
    config["filter_overlong_prompts"] = False
    data = RLHFDataset(data_files=str(tmp_path / "train.parquet"), tokenizer=TOKENIZER, config=config)
    assert len(data) == len(rows)
    assert [int(data[i]["question_index"]) for i in (0, 5)] == [0, 5]
    assert data[5]["agent_name"] == "search_gym"
    assert data[5]["raw_prompt"] == rows[5]["prompt"]
