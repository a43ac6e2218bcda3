"""TRL's trainer plays and learns through the adapter: ids, masks and log-probabilities are those of the episode."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from accelerate.state import AcceleratorState

from agents.policy import evaluate_tokens
from agents.tasks import EnvConfig, make_envs
from search_gym.adapters.trl import episode_reward, make_rollout_func
from search_gym.errors import OptionError

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'")
ENV = EnvConfig(kinds=("1-hop",))


@needs_trl
@pytest.mark.filterwarnings("ignore")
def test_the_rollout_func_plays_with_the_trainers_model(tmp_path) -> None:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from agents.tiny_trl import add_own_head, load_tiny

    AcceleratorState._reset_state(reset_partial_state=True)
    model, tokenizer = load_tiny()
    envs = make_envs(ENV, tokenizer.codec, 3)
    texts = [question.text for question in envs.task.questions[:4]]
    assert all(tokenizer(t)["input_ids"] == tokenizer.codec.encode(t).tolist() for t in texts)
    rollout = make_rollout_func(envs)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=episode_reward,
        rollout_func=rollout,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=2,
            per_device_train_batch_size=4,
            max_steps=1,
            max_completion_length=640,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": texts}),
    )
    add_own_head(trainer)
    found = rollout(texts, trainer)
    for i, text in enumerate(texts):
        ids = torch.tensor([found["prompt_ids"][i] + found["completion_ids"][i]])
        mask = torch.tensor([[False] * len(found["prompt_ids"][i]) + [bool(x) for x in found["env_mask"][i]]])
        assert text in tokenizer.codec.decode(found["prompt_ids"][i])
        ours = evaluate_tokens(trainer.model, ids, torch.ones_like(ids).bool(), mask, 1.0)
        theirs = torch.tensor([found["logprobs"][i]])
        torch.testing.assert_close(theirs, ours.logprobs[:, len(found["prompt_ids"][i]) :].detach(), atol=1e-4, rtol=0)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(OptionError, match="text of a question"):
        rollout(["no such question"], trainer)
    AcceleratorState._reset_state(reset_partial_state=True)
