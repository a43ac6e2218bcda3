"""TRL's trainer plays and learns through the adapter: ids, masks and log-probabilities are those of the episode."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[trl]'")

from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from agents.policy import evaluate_tokens
from agents.tasks import EnvConfig, make_envs
from agents.tiny_trl import add_own_head, load_tiny
from search_gym.adapters.trl import (
    SearchTools,
    episode_reward,
    make_environment_factory,
    make_rollout_func,
)
from search_gym.codec import HFCodec
from search_gym.errors import OptionError
from search_gym.questions import Question
from search_gym.retrievers import Document
from search_gym.rewards import Outcome
from search_gym.vector_env import SearchVectorEnv
from tests import small_models

ENV = EnvConfig(kinds=("1-hop",))
PAGE = Path(__file__).parents[1] / "docs" / "adapters" / "trl.md"


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Keeps what TRL tells accelerate from the tests that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(folder: Path, **more: Any) -> GRPOConfig:
    """One step on the CPU."""
    options = {"num_generations": 2, "per_device_train_batch_size": 4, "max_completion_length": 640, **more}
    return GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        max_steps=1,
        gradient_checkpointing=False,
        **options,
    )


def trainer_of(rollout: Any, model: Any, tokenizer: Any, prompts: list[str], config: GRPOConfig) -> GRPOTrainer:
    """A trainer that plays with ``rollout``."""
    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=episode_reward,
        rollout_func=rollout,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )


def check_episodes(found: dict[str, Any], envs: SearchVectorEnv, questions: list[int], model: Any) -> None:
    """Played again token by token, what was sampled gives the same transcripts, and has the log-probabilities given."""
    for i, question in enumerate(questions):
        completion, mask = np.array(found["completion_ids"][i]), np.array(found["env_mask"][i], dtype=np.bool_)
        slot = np.arange(envs.num_envs) == 0
        envs.reset(options={"question_index": question, "reset_mask": slot})
        for token in completion[mask]:
            assert not envs.episode(0).is_finished
            envs.recv(envs.send([0], [np.array([token])]))
        transcript = envs.episode(0).transcript
        assert envs.episode(0).is_finished
        assert transcript.token_ids.tolist() == found["prompt_ids"][i] + completion.tolist()
        ids = torch.tensor(transcript.token_ids)[None]
        ours = evaluate_tokens(model, ids, torch.ones_like(ids).bool(), torch.tensor(transcript.loss_mask)[None], 1.0)
        theirs = torch.tensor([found["logprobs"][i]])
        torch.testing.assert_close(theirs, ours.logprobs[:, len(found["prompt_ids"][i]) :].detach(), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_the_rollout_func_plays_with_the_trainers_model(tmp_path: Path) -> None:
    model, tokenizer = load_tiny()
    envs = make_envs(ENV, tokenizer.codec, 3)
    texts = [question.text for question in envs.task.questions[:4]]
    assert all(tokenizer(t)["input_ids"] == tokenizer.codec.encode(t).tolist() for t in texts)
    rollout = make_rollout_func(envs)
    trainer = trainer_of(rollout, model, tokenizer, texts, arguments(tmp_path))
    add_own_head(trainer)
    found = rollout(texts, trainer)
    assert all(t in tokenizer.codec.decode(ids) for t, ids in zip(texts, found["prompt_ids"], strict=True))
    check_episodes(found, envs, [0, 1, 2, 3], trainer.model)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(OptionError, match="text of a question"):
        rollout(["no such question"], trainer)


def piecewise_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose closing tags are two tokens each."""
    words = ("<eos>", "<unk>", "<pad>", "<search>", "<answer>", "</", " </", "search>", "search>\n", "answer>", "who")
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" ?</|<?(search|answer)>\n?|who|."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>", pad_token="<pad>", padding_side="left"
    )


class OneDocument:
    """Finds the same for every query."""

    def search(self, queries: Any, k: int) -> list[list[Document]]:
        return [[Document("d", "who", "is answer", 1.0)][:k] for _ in queries]


@pytest.mark.filterwarnings("ignore")
def test_turns_end_where_tags_of_several_tokens_close(tmp_path: Path) -> None:
    """A Hugging Face model without training, whose vocabulary is so small that it writes tags by chance."""
    tokenizer = piecewise_tokenizer()
    model = small_models.llama(len(tokenizer))
    model.lm_head.weight.data *= 0.1  # nothing is much more probable than anything else
    questions = [Question(f"q{i}", " ".join(["who"] * (i + 1)), ("who",), {}) for i in range(8)]
    envs = gym.make_vec(
        "search_gym/SearchQA-v0",
        num_envs=8,
        questions=questions,
        retriever=OneDocument(),
        codec=HFCodec(tokenizer),
        reward_fn=lambda outcome: float(len(outcome.turns)),
        max_turn_tokens=40,
        max_context_tokens=2000,
        max_turns=4,
    )
    assert isinstance(envs, SearchVectorEnv)
    rollout = make_rollout_func(envs)
    texts = [question.text for question in questions]
    trainer = trainer_of(rollout, model, tokenizer, texts, arguments(tmp_path, max_completion_length=2000))
    found = rollout(texts, trainer)
    check_episodes(found, envs, list(range(8)), trainer.model)
    assert sum(found["num_searches"]) > 0
    trainer.train()
    assert trainer.state.global_step == 1


def num_searches(outcome: Outcome) -> float:
    """A reward that the base model gets some of."""
    return float(sum(turn.event == "search" for turn in outcome.turns))


@pytest.mark.filterwarnings("ignore")
def test_the_trainer_calls_the_tools_of_an_environment_factory(tmp_path: Path) -> None:
    model, tokenizer = load_tiny()
    options = {"question_options": {"kinds": ["1-hop"]}, "top_k": 1, "max_turns": 3, "reward_fn": num_searches}
    factory = make_environment_factory("search_gym/TinyWiki-v0", **options)
    task = gym.make("search_gym/TinyWiki-v0", **options).get_wrapper_attr("task")
    seen: list[dict[str, Any]] = []

    def watch(**columns: Any) -> list[float]:
        seen.append({**columns, "rewards": [tools.get_reward() for tools in columns["environments"]]})
        return [0.0] * len(columns["completions"])

    prompts = [[{"role": "user", "content": question.text}] for question in task.questions[:2]]
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=watch,
        environment_factory=factory,
        args=arguments(
            tmp_path,
            num_generations=4,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            generation_kwargs={"max_new_tokens": 24},
            max_tool_calling_iterations=5,
            logging_steps=1,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    add_own_head(trainer)
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()

    (columns,) = seen
    assert len(columns["completions"]) == 8
    assert all(isinstance(tools, SearchTools) for tools in columns["environments"])
    ended = 0
    for completion, ids, reward in zip(
        columns["completions"], columns["completion_ids"], columns["rewards"], strict=True
    ):
        searched, is_over = 0, False
        for call, result in itertools.pairwise(completion):
            if result["role"] != "tool":
                continue
            (function,) = (tool_call["function"] for tool_call in call["tool_calls"])
            if is_over:
                assert result["content"] == "The episode is over."
            elif function["name"] == "answer":
                assert result["content"] == "The answer has been received."
                is_over = True
            elif searched == options["max_turns"]:
                assert "too many turns" in result["content"]
                is_over = True
            else:
                ((document,),) = task.retriever.search([function["arguments"]["query"]], 1)
                assert result["content"] == f'Doc 1(Title: "{document.title}") {document.text}'
                searched += 1
        assert reward == (searched if is_over else 0.0)
        ended += is_over
        sampled = re.sub(r"<information>.*?</information>", "", tokenizer.codec.decode(ids))
        for message in completion:
            for tool_call in message.get("tool_calls", ()):
                (argument,) = tool_call["function"]["arguments"].values()
                assert argument in sampled
    assert ended > 0
    logged = trainer.state.log_history[0]
    assert logged["rewards/SearchTools/mean"] == pytest.approx(np.mean(columns["rewards"]))
    assert logged["tools/call_frequency"] > 0
    assert logged["tools/failure_frequency"] == 0
    after = trainer.model.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        AcceleratorState._reset_state(reset_partial_state=True)
        exec(compile(block, PAGE.name, "exec"), names)
        assert names["trainer"].state.global_step == 1
