"""What plays in the comparison: one class for each environment, which imports its library when it is made.

Every contestant plays the same episode: question, one search, one answer, with the same three documents from a stub
that stands where the library asks its search server. ``episode`` plays it once; ``played`` says what came of it when
every turn is given in so many chunks, None where an action has none; ``vectors`` are the ways that the library offers
to let ``NUM_SLOTS`` episodes search at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from benchmarks.peers.episode import (
    ANSWER,
    ANSWER_TURN,
    NUM_DOCUMENTS,
    NUM_SLOTS,
    QUERY,
    QUESTION,
    SEARCH_TURN,
    TEXT,
    TITLE,
    Contestant,
    Played,
    Server,
    play,
    stub,
)
from benchmarks.peers.trl_loop import Trl


class SearchGym(Contestant):
    """`search_gym.SearchEnv` on token ids, or on text with ``TextTurns``; the native vector environment."""

    def __init__(self, server: Server, *, text: bool = False) -> None:
        import gymnasium as gym

        from search_gym import ByteCodec, Question
        from search_gym.wrappers import TextTurns

        options: dict[str, Any] = {"questions": [Question("q", QUESTION, (ANSWER,))], "retriever": stub(server)}
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

        return play(self.env.reset, step, (self.search, self.answer), num_chunks)

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

        return play(self.env.reset, step, (SEARCH_TURN, ANSWER_TURN), num_chunks)

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

        return play(lambda: None, step, (SEARCH_TURN, ANSWER_TURN), num_chunks)

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
        from search_gym import ByteCodec, Question
        from search_gym.adapters._play import SharedTask
        from search_gym.adapters.openenv import SearchAction, SearchEnvironment

        options = {"questions": [Question("q", QUESTION, (ANSWER,))], "retriever": stub(server)}
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

        return play(self.env.reset, step, (self.search, self.answer), num_chunks)

    def vectors(self) -> dict[str, Callable[[], None]]:
        def step() -> None:
            for env in self._envs:
                env.reset()
            list(self._threads.map(lambda env: env.step(self.act(token_ids=self.search)), self._envs))

        return {"threads, as its server does": step}


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
