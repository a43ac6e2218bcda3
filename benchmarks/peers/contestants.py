"""What plays in the comparison: one class for each environment, which imports its library when it is made.

Every contestant plays the same episode: question, one search, one answer, with the same three documents from a stub
that stands where the library asks its search server. ``episode`` plays it once; ``played`` says what came of it when
every turn is given in so many chunks, None where an action has none; ``vectors`` are the ways that the library offers
to let ``NUM_SLOTS`` episodes search at the same time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

QUESTION = "Who played Brian O'Conner in The Fast and the Furious?"
ANSWER = "Paul Walker"
SEARCH_TURN = "<think>I do not know the cast by heart.</think><search>actor of Brian O'Conner</search>"
ANSWER_TURN = "<think>The first document names Paul Walker.</think><answer>Paul Walker</answer>"
QUERY = "actor of Brian O'Conner"
TITLE, TEXT = "Paul Walker", "Paul William Walker IV (born September 12, 1973) was an American actor."
NUM_DOCUMENTS = 3
NUM_SLOTS = 16
Played = tuple[str, float]
"""The text of all observations after the prompt, and the sum of rewards."""


class Server:
    """A search server that takes ``seconds`` for a request; one at a time if ``serial``, however many queries it has.

    ``per_query``: every query of a request takes ``seconds``, so that batches gain nothing.
    """

    def __init__(self, seconds: float = 0.0, *, serial: bool = False, per_query: bool = False) -> None:
        self.seconds, self.per_query = seconds, per_query
        self._lock = threading.Lock() if serial or per_query else None
        self._async_lock = asyncio.Lock()

    def wait(self, num_queries: int = 1) -> None:
        """Take as long as a request of so many queries takes."""
        if not self.seconds:
            return
        seconds = self.seconds * (num_queries if self.per_query else 1)
        if self._lock is None:
            time.sleep(seconds)
        else:
            with self._lock:
                time.sleep(seconds)

    async def wait_async(self) -> None:
        """The same for a request of one query, without a thread."""
        if not self.seconds:
            return
        if self._lock is None:
            await asyncio.sleep(self.seconds)
        else:
            async with self._async_lock:
                await asyncio.sleep(self.seconds)


class Contestant:
    """What is asked of every one; `episode` is one call, which plays ``per_call`` episodes."""

    per_call = 1

    def episode(self) -> float:
        """Play, and return the mean reward."""
        raise NotImplementedError

    def played(self, num_chunks: int) -> Played | None:
        """What came of an episode whose turns were given in so many chunks; None where an action has no parts."""
        return None

    def vectors(self) -> dict[str, Callable[[], None]]:
        """Ways to let ``NUM_SLOTS`` episodes begin and search."""
        return {}


class SearchGym(Contestant):
    """`search_gym.SearchEnv` on token ids, or on text with ``TextTurns``; the native vector environment."""

    def __init__(self, server: Server, *, text: bool = False) -> None:
        import gymnasium as gym

        from search_gym import ByteCodec, Document, Question
        from search_gym.wrappers import TextTurns

        class Stub:
            def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
                server.wait(len(queries))
                return [[Document(str(i), TITLE, TEXT) for i in range(k)] for _ in queries]

        options: dict[str, Any] = {"questions": [Question("q", QUESTION, (ANSWER,))], "retriever": Stub()}
        env = gym.make("search_gym/SearchQA-v0", **options)
        self.env: Any = TextTurns(env) if text else env
        encode = (lambda turn: turn) if text else ByteCodec().encode
        self.decode: Callable[[Any], str] = str if text else ByteCodec().decode
        self.search, self.answer = encode(SEARCH_TURN), encode(ANSWER_TURN)
        self.envs: Any = None if text else gym.make_vec("search_gym/SearchQA-v0", num_envs=NUM_SLOTS, **options)

    def episode(self) -> float:
        self.env.reset()
        self.env.step(self.search)
        return float(self.env.step(self.answer)[1])

    def played(self, num_chunks: int) -> Played | None:
        decode = self.decode

        def step(chunk: Any) -> tuple[str, float, bool]:
            observation, reward, terminated, truncated, _ = self.env.step(chunk)
            return decode(observation), float(reward), terminated or truncated

        return _play(self.env.reset, step, (self.search, self.answer), num_chunks)

    def vectors(self) -> dict[str, Callable[[], None]]:
        if self.envs is None:
            return {}

        def step() -> None:
            self.envs.reset()
            self.envs.step((self.search,) * NUM_SLOTS)

        return {"SearchVectorEnv, one request": step}


class Gem(Contestant):
    """GEM's ``QaEnv`` in its ``ToolEnvWrapper`` with its ``SearchTool``, whose request alone is replaced."""

    def __init__(self, server: Server) -> None:
        import datasets
        from gem.envs.qa_env import QaEnv  # pyright: ignore[reportMissingImports]
        from gem.tools.search_tool import SearchTool  # pyright: ignore[reportMissingImports]
        from gem.tools.tool_env_wrapper import ToolEnvWrapper  # pyright: ignore[reportMissingImports]
        from gem.vector.async_vector_env import AsyncVectorEnv  # pyright: ignore[reportMissingImports]
        from gem.vector.sync_vector_env import SyncVectorEnv  # pyright: ignore[reportMissingImports]

        documents = [{"document": {"contents": f"{TITLE}\n{TEXT}"}}] * NUM_DOCUMENTS

        class Tool(SearchTool):
            def _search(self, query: str) -> str:
                server.wait()
                return self._passages2string(documents)

        datasets.disable_progress_bars()

        def make(num_rows: int = 512) -> Any:
            # Rows enough that it does not begin a new epoch, and shuffle, every other episode.
            rows = datasets.Dataset.from_list([{"question": QUESTION, "answer": ANSWER}] * num_rows)
            return ToolEnvWrapper(QaEnv(dataset=rows), tools=[Tool(search_url="http://unused")])

        self.env = make(8192)
        self._vectors = {
            "SyncVectorEnv": SyncVectorEnv([""] * NUM_SLOTS, [make] * NUM_SLOTS),
            "AsyncVectorEnv, threads": AsyncVectorEnv([""] * NUM_SLOTS, [make] * NUM_SLOTS),
        }

    def episode(self) -> float:
        self.env.reset()
        self.env.step(SEARCH_TURN)
        return float(self.env.step(ANSWER_TURN)[1])

    def played(self, num_chunks: int) -> Played | None:
        def step(chunk: Any) -> tuple[str, float, bool]:
            observation, reward, terminated, truncated, _ = self.env.step(chunk)
            return observation, float(reward), terminated or truncated

        return _play(self.env.reset, step, (SEARCH_TURN, ANSWER_TURN), num_chunks)

    def vectors(self) -> dict[str, Callable[[], None]]:
        def stepping(envs: Any) -> Callable[[], None]:
            def step() -> None:
                envs.reset()
                envs.step([SEARCH_TURN] * NUM_SLOTS)

            return step

        return {name: stepping(envs) for name, envs in self._vectors.items()}


class SkyRL(Contestant):
    """SkyRL-gym's own ``SearchEnv``, in which the HTTP call alone is replaced; an episode needs a new object."""

    _servers: ClassVar[dict[str, Server]] = {}

    def __init__(self, server: Server) -> None:
        import skyrl_gym  # pyright: ignore[reportMissingImports]
        from skyrl_gym.envs.search.env import SearchEnvConfig  # pyright: ignore[reportMissingImports]
        from skyrl_gym.tools import search  # pyright: ignore[reportMissingImports]

        documents = [{"document": {"contents": f'"{TITLE}"\n{TEXT}'}}] * NUM_DOCUMENTS

        # One function stands for the HTTP call of all objects, so the address says whose server is asked.
        url = f"http://127.0.0.1/{id(server)}"
        self._servers[url] = server

        def call(*, retrieval_service_url: str, **options: Any) -> tuple[dict[str, Any], None]:
            self._servers[retrieval_service_url].wait()
            return {"result": [documents]}, None

        search.call_search_api = call
        config = SearchEnvConfig(log_requests=False, search_url=url)
        extras = {"reward_spec": {"ground_truth": {"target": [ANSWER]}}, "max_turns": 4}
        self.make = lambda: skyrl_gym.make("search", env_config=config, extras=extras)
        self._threads = ThreadPoolExecutor(NUM_SLOTS)

    def _begin(self) -> Any:
        env = self.make()
        env.init([{"role": "user", "content": QUESTION}])
        return env

    def episode(self) -> float:
        env = self._begin()
        env.step(SEARCH_TURN)
        return float(env.step(ANSWER_TURN)["reward"])

    def played(self, num_chunks: int) -> Played | None:
        env = self._begin()

        def step(chunk: Any) -> tuple[str, float, bool]:
            output = env.step(chunk)
            text = "".join(message["content"] for message in output["observations"])
            return text, float(output["reward"]), output["done"]

        return _play(lambda: None, step, (SEARCH_TURN, ANSWER_TURN), num_chunks)

    def vectors(self) -> dict[str, Callable[[], None]]:
        def loop() -> None:
            for env in [self._begin() for _ in range(NUM_SLOTS)]:
                env.step(SEARCH_TURN)

        def threads() -> None:
            envs = [self._begin() for _ in range(NUM_SLOTS)]
            list(self._threads.map(lambda env: env.step(SEARCH_TURN), envs))

        return {"one after the other": loop, "threads, as its generator does": threads}


class Aviary(Contestant):
    """aviary's ``HotPotQAEnv``: tool calls; its cache of pages holds a page with the same documents.

    Where the server takes time, it does before the page is looked up, as its request would.
    """

    def __init__(self, server: Server) -> None:
        from aviary.core import ToolCall, ToolRequestMessage  # pyright: ignore[reportMissingImports]
        from aviary.envs.hotpotqa import HotPotQAEnv  # pyright: ignore[reportMissingImports]

        page = f"<html><body>{''.join(f'<p>{TITLE}. {TEXT}</p>' for _ in range(NUM_DOCUMENTS))}</body></html>"
        HotPotQAEnv.wiki_cache[QUERY.replace(" ", "+")] = page

        class Env(HotPotQAEnv):
            async def search(self, entity: str) -> str:
                """Searches Wikipedia for the given entity and processes the results.

                Args:
                    entity: The entity to search for on Wikipedia.
                """
                await server.wait_async()
                return await super().search(entity)

        self.make = lambda: Env(question_id=None, question=QUESTION, correct_answer=ANSWER)
        self.env = self.make()
        self.search = lambda: ToolRequestMessage(tool_calls=[ToolCall.from_name("search", entity=QUERY)])
        self.answer = lambda: ToolRequestMessage(tool_calls=[ToolCall.from_name("submit_answer", answer=ANSWER)])
        self._loop = asyncio.new_event_loop()
        self._envs = [self.make() for _ in range(NUM_SLOTS)]

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    def episode(self) -> float:
        async def play() -> float:
            await self.env.reset()
            await self.env.step(self.search())
            return (await self.env.step(self.answer()))[1]

        return float(self._run(play()))

    def vectors(self) -> dict[str, Callable[[], None]]:
        async def together() -> None:
            await asyncio.gather(*(env.reset() for env in self._envs))
            await asyncio.gather(*(env.step(self.search()) for env in self._envs))

        return {"asyncio.gather": lambda: self._run(together())}


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
        template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
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


class OpenEnvEmpty(Contestant):
    """OpenEnv's base classes in process and an environment that does nothing: it has no search environment."""

    def __init__(self, server: Server) -> None:
        from openenv.core.env_server import (  # pyright: ignore[reportMissingImports]
            Action,
            Environment,
            Observation,
            State,
        )

        class Say(Action):
            text: str = ""

        class Read(Observation):
            text: str = ""

        class Empty(Environment[Say, Read, State]):
            def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Read:
                return Read(text=QUESTION)

            def step(self, action: Say, timeout_s: float | None = None, **options: Any) -> Read:
                is_answer = "<answer>" in action.text
                return Read(text="" if is_answer else TEXT, done=is_answer, reward=float(is_answer))

            @property
            def state(self) -> State:
                return State()

        self.env, self.act = Empty(), Say

    def episode(self) -> float:
        self.env.reset()
        self.env.step(self.act(text=SEARCH_TURN))
        return float(self.env.step(self.act(text=ANSWER_TURN)).reward)


class OpenEnvOurs(Contestant):
    """search_gym's environment as OpenEnv's, in process, on token ids."""

    def __init__(self, server: Server) -> None:
        from search_gym import ByteCodec, Document, Question
        from search_gym.adapters._play import SharedTask
        from search_gym.adapters.openenv import SearchAction, SearchEnvironment

        class Stub:
            def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
                server.wait(len(queries))
                return [[Document(str(i), TITLE, TEXT) for i in range(k)] for _ in queries]

        options = {"questions": [Question("q", QUESTION, (ANSWER,))], "retriever": Stub()}
        self.shared = SharedTask.of("search_gym/SearchQA-v0", options)
        self.make, self.act = lambda: SearchEnvironment(self.shared), SearchAction
        self.env = self.make()
        self.search, self.answer = (ByteCodec().encode(turn).tolist() for turn in (SEARCH_TURN, ANSWER_TURN))
        self._envs = [self.make() for _ in range(NUM_SLOTS)]
        self._threads = ThreadPoolExecutor(NUM_SLOTS)

    def episode(self) -> float:
        self.env.reset()
        self.env.step(self.act(token_ids=self.search))
        return float(self.env.step(self.act(token_ids=self.answer)).reward)

    def played(self, num_chunks: int) -> Played | None:
        def step(chunk: Any) -> tuple[str, float, bool]:
            found = self.env.step(self.act(token_ids=chunk))
            return found.text, float(found.reward), found.done

        return _play(self.env.reset, step, (self.search, self.answer), num_chunks)

    def vectors(self) -> dict[str, Callable[[], None]]:
        def step() -> None:
            for env in self._envs:
                env.reset()
            list(self._threads.map(lambda env: env.step(self.act(token_ids=self.search)), self._envs))

        return {"threads, as its server does": step}


def _play(
    reset: Callable[[], Any], step: Callable[[Any], tuple[str, float, bool]], turns: Sequence[Any], num_chunks: int
) -> Played:
    """An episode whose turns are given in so many chunks, until it ends."""
    reset()
    observed, total = "", 0.0
    for turn in turns:
        size = -(-len(turn) // num_chunks)
        for start in range(0, len(turn), size):
            text, reward, is_over = step(turn[start : start + size])
            observed, total = observed + text, total + reward
            if is_over:
                return observed, total
    return observed, total


CONTESTANTS: dict[str, tuple[str | None, Callable[[Server], Contestant]]] = {
    "search_gym, token ids": (None, SearchGym),
    "search_gym, text": (None, lambda server: SearchGym(server, text=True)),
    "GEM": ("gem", Gem),
    "SkyRL-gym": ("skyrl", SkyRL),
    "aviary": ("aviary", Aviary),
    "TRL's loop": ("trl", Trl),
    "OpenEnv, an empty environment": ("openenv", OpenEnvEmpty),
    "search_gym in OpenEnv": ("openenv", OpenEnvOurs),
}
"""Name, the environment of ``peers.toml`` that it needs (None: this one), and how it is made."""
