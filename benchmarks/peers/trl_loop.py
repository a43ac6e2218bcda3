"""TRL's loop of tool calls as a contestant of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.peers.episode import (
    ANSWER,
    ANSWER_TURN,
    NUM_DOCUMENTS,
    NUM_SLOTS,
    QUERY,
    QUESTION,
    TEXT,
    TITLE,
    Contestant,
    Server,
)


class Trl(Contestant):
    """TRL's loop of tool calls around an ``environment_factory`` object with a search tool, its generation replaced.

    An episode is one prompt of a batch of ``NUM_SLOTS`` in that loop: reset, the chat template and its tokens, the
    first reply parsed, the tool, the tokens of its result, and the last reply parsed. What the model would have sampled
    is there at once. A step of many is the same batch, two replies each, because the loop has no smaller part.
    """

    per_call = NUM_SLOTS

    def __init__(self, server: Server) -> None:
        import tempfile
        from pathlib import Path

        import datasets
        import trl.trainer.grpo_config  # pyright: ignore[reportMissingImports]
        import trl.trainer.grpo_trainer  # pyright: ignore[reportMissingImports]
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        class Environment:
            def reset(self, **row: Any) -> str | None:
                return None

            def search(self, query: str) -> str:
                """Search for documents.

                Args:
                    query: What to look for.

                Returns:
                    The documents.
                """
                server.wait()
                return "".join(f"Doc {i}(Title: {TITLE}) {TEXT}\n" for i in range(1, NUM_DOCUMENTS + 1))

        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
        backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(special[:3])
        backend.add_tokens(special[3:])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left"
        )
        template = Path(str(trl.__file__)).parent / "chat_templates" / "qwen3.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=8192, **sizes)
        self.prompt = [{"role": "user", "content": QUESTION}]
        self.trainer: Any = trl.trainer.grpo_trainer.GRPOTrainer(
            model=LlamaForCausalLM(config),
            reward_funcs=lambda completions, **columns: [0.0] * len(completions),
            args=trl.trainer.grpo_config.GRPOConfig(
                output_dir=tempfile.mkdtemp(),
                use_cpu=True,
                report_to="none",
                max_completion_length=4096,
                per_device_train_batch_size=2,
                num_generations=2,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": self.prompt}] * 2),
            processing_class=tokenizer,
            environment_factory=Environment,
        )
        call = f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{QUERY}"}}}}\n</tool_call><|im_end|>'
        self._replies = [tokenizer.encode(text) for text in (call, f"{ANSWER_TURN}<|im_end|>")]
        self._calls = 0

        def reply(prompt_ids: list[list[int]], *others: Any, **options: Any) -> tuple[list[list[int]], None]:
            self._calls += 1
            return [list(self._replies[(self._calls - 1) % 2]) for _ in prompt_ids], None

        self.trainer._generate_single_turn = reply
        self.pool = [Environment() for _ in range(NUM_SLOTS)]

    def _play(self, count: int) -> list[Any]:
        """What the trainer does before and around its loop, for so many prompts."""
        trainer, pool = self.trainer, self.pool[:count]
        trainer._batch_environments = [None] * count
        trainer.environments = pool
        trainer._sync_tool_dicts = [{"search": environment.search} for environment in pool]
        trainer._async_tool_dicts = [{} for _ in pool]
        for environment in pool:
            environment.reset()
        return trainer._generate([list(self.prompt) for _ in pool])[3]

    def episode(self) -> float:
        right = 0
        for completion in self._play(NUM_SLOTS):
            roles = [message["role"] for message in completion]
            right += roles == ["assistant", "tool", "assistant"] and ANSWER in str(completion[-1])
        return right / NUM_SLOTS

    def vectors(self) -> dict[str, Callable[[], None]]:
        def step() -> None:
            self._play(NUM_SLOTS)

        return {"its loop of tool calls": step}
