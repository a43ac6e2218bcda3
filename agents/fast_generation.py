"""The fast engine: every slot has a row of one cache, and all rows take a step together, whatever turn each is in.

* A turn that has ended is handed out while the others go on, and its slot is taken up again in the next block of steps
  (continuous batching, Yu et al. 2022, "Orca"), so a batch never waits for its longest turn.
* Sampling, log-probabilities and the end of a turn are computed where the model is; the host looks every few steps.
  On a GPU a step is one CUDA graph.
* What is appended to many slots is fed as one row of tokens without padding, and a prompt that several slots begin
  with, as in a GRPO group, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedModel

from agents import decoders, stop_tags
from agents.decoders import Decoder, make_chunk
from agents.generation import SampledTurn, check_turns
from agents.sampling import Randomness, check_top_p
from agents.turn_rows import Sampling, TurnRows
from search_gym.codec import TokenCodec, TokenIds
from search_gym.tags import closes_turn

_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int64)
_SHORTEST_SHARED = 8  # tokens that are worth copying


class FastGenerator:
    """A `agents.generation.Generator` for models with a decoder; same tokens as `CachedGenerator` up to rounding.

    Arguments:
        model, codec, temperature, greedy, top_p: see `CachedGenerator`. The weights may change before each `start`.
        dtype: of matrix products and cache; by default the model's.
        decoder: instead of the one that `agents.decoders.load` makes.
        steps: tokens of each open turn between two looks of the host.
        share: of the open turns, how many have to end before they are handed out. Few keep all rows busy, which pays
            where a step costs the same for any number of rows, as on a GPU; more are fed and answered more cheaply.
        prefill_tokens: tokens that are fed at most at a time when prompts and observations are appended.
        capture: whether a step becomes a CUDA graph; by default on a GPU.

    The cache and the record of turns grow when they have to.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: TokenCodec,
        *,
        temperature: float = 1.0,
        greedy: bool = False,
        top_p: float = 1.0,
        dtype: torch.dtype | None = None,
        decoder: Decoder | None = None,
        steps: int | None = None,
        share: float | None = None,
        prefill_tokens: int = 32_768,
        capture: bool | None = None,
    ) -> None:
        """Raises OptionError: ``top_p`` is not above 0 and at most 1."""
        check_top_p(top_p)
        self.model, self.codec = model, codec
        self.temperature, self.greedy, self.top_p = temperature, greedy, top_p
        self._dtype = dtype
        self._decoder = decoder
        self._asked_steps, self._asked_share, self._asked_capture = steps, share, capture
        self._prefill_tokens = prefill_tokens
        self._device: torch.device | None = None
        self._capacity = 128  # columns that were enough so far

    @staticmethod
    def knows(model: PreTrainedModel) -> bool:
        """Whether there is a decoder for ``model``."""
        return decoders.knows(model)

    def start(self, num_slots: int, seed: int, first_episode: int = 0) -> None:
        self.model.eval()
        self._prepare()
        self._randomness = Randomness(num_slots, seed, first_episode)
        self._unfed: list[TokenIds] = [_NO_TOKENS] * num_slots
        self._lengths = [0] * num_slots  # columns of the cache that a slot has in use
        self._row_of: list[int | None] = [None] * num_slots
        self._slot_in: list[int | None] = []  # for each row in use
        self._begun: dict[int, int] = {}  # slots whose turn is to be opened, with its longest length
        self._open: dict[int, int] = {}  # slots whose turn is open, with the same
        self._prompts: dict[bytes, int] = {}  # beginnings, with a slot that holds them
        self._prompt_of: dict[int, bytes] = {}
        assert self._decoder is not None
        self._decoder.sync()
        if self._decoder.num_rows < num_slots:
            self._grow(num_slots, self._capacity)
        self._rows.is_open.zero_()

    def release(self) -> None:
        """Give back the memory of the cache and of the graph, until the next `start`; every slot is forgotten."""
        if self._decoder is not None:
            self._decoder.free()
        self._graph = None

    def _prepare(self) -> None:
        """Make what depends on where the model is; once, or when it has moved."""
        device = self.model.device
        if self._device == device:
            return
        self._device = device
        if self._decoder is None or self._decoder.num_rows:
            self._decoder = decoders.load(self.model, dtype=self._dtype)
        assert self._decoder is not None, "expected a model that FastGenerator.knows"
        on_gpu = device.type == "cuda"
        self._capture = on_gpu if self._asked_capture is None else self._asked_capture
        self._steps = self._asked_steps or self._decoder.steps
        self._share = self._asked_share or (0.0 if on_gpu else 0.3)
        self._sampling = Sampling(
            tag_table=torch.from_numpy(stop_tags.transitions(self.codec)).to(device),
            temperature=self.temperature,
            greedy=self.greedy,
            top_p=self.top_p,
            vocab_size=self.codec.vocab_size,
            eos_id=self.codec.eos_id,
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows = TurnRows.make(0, 32, device)

    def place(self, slots: Sequence[int], episodes: Sequence[int]) -> None:
        self.drop(slots)
        self._randomness.place(slots, episodes)

    def extend(self, slots: Sequence[int], token_ids: Sequence[TokenIds]) -> None:
        for slot, ids in zip(slots, token_ids, strict=True):
            self._unfed[slot] = np.concatenate((self._unfed[slot], ids))

    def drop(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._unfed[slot] = _NO_TOKENS
            self._lengths[slot] = 0
            self._begun.pop(slot, None)
            self._open.pop(slot, None)
            if (row := self._row_of[slot]) is not None:
                self._slot_in[row] = self._row_of[slot] = None
                self._rows.is_open[row] = False
            if (prompt := self._prompt_of.pop(slot, None)) is not None and self._prompts.get(prompt) == slot:
                del self._prompts[prompt]

    def sample(self, slots: Sequence[int], max_tokens: Sequence[int]) -> list[SampledTurn]:
        """Sample one turn for each of ``slots``, which may not be in the middle of one.

        Raises:
            OptionError: a slot holds no token to go on from, or may not sample a single one.
        """
        self.begin(slots, max_tokens)
        found: dict[int, SampledTurn] = {}
        while len(found) < len(slots):
            found.update(self.advance())
        return [found[slot] for slot in slots]

    def begin(self, slots: Sequence[int], max_tokens: Sequence[int]) -> None:
        """Open a turn in each of ``slots``.

        Raises:
            OptionError: a slot holds no token to go on from, or may not sample a single one.
        """
        limits = check_turns(slots, max_tokens, [self._unfed[slot].size for slot in slots])
        self._begun.update(zip(slots, limits.tolist(), strict=True))

    @torch.no_grad()
    def advance(self) -> list[tuple[int, SampledTurn]]:
        """Take steps until some turns have ended: those, each with its slot."""
        self._enter()
        enough = max(1, int(self._share * len(self._open)))
        found: list[tuple[int, SampledTurn]] = []
        while self._open and len(found) < enough:
            self._take_steps()
            found += self._ended()
        return found

    # Turns that begin

    def _enter(self) -> None:
        """Feed what slots of new turns hold beyond the cache, but for the last token, which the first step takes."""
        slots, self._begun, limits = list(self._begun), {}, self._begun
        if not slots:
            return
        self._take_rows(slots)
        self._fit(slots, limits)
        rows = [self._row(slot) for slot in slots]
        self._feed(slots)
        device = self._rows.tokens.device
        length = max(limits[slot] for slot in slots)
        uniforms = np.zeros((len(slots), length))
        for i, slot in enumerate(slots):
            uniforms[i, : limits[slot]] = self._randomness.draw(slot, limits[slot])
        columns = [(int(self._unfed[s][-1]), self._lengths[s], limits[s]) for s in slots]
        tokens, lengths, counts = torch.tensor(columns).to(device).unbind(dim=1)
        index = torch.tensor(rows, device=device)
        state = self._rows
        state.tokens[index], state.lengths[index], state.limits[index] = tokens, lengths, counts
        state.counts[index] = 0
        state.tags[index] = 0
        state.uniforms[index, :length] = torch.from_numpy(uniforms).to(device)
        state.is_open[index] = True
        for slot in slots:
            self._unfed[slot] = _NO_TOKENS
            self._open[slot] = limits[slot]

    def _row(self, slot: int) -> int:
        row = self._row_of[slot]
        assert row is not None
        return row

    def _take_rows(self, slots: Sequence[int]) -> None:
        """Give each slot a row. Without a graph, rows in use are the first ones, and a step is as wide as they are."""
        if not self._capture:
            self._close_gaps()
        free = iter([row for row, slot in enumerate(self._slot_in) if slot is None])
        for slot in slots:
            if self._row_of[slot] is None:
                row = next(free, None)
                if row is None:
                    row = len(self._slot_in)
                    self._slot_in.append(None)
                self._slot_in[row], self._row_of[slot] = slot, row

    def _close_gaps(self) -> None:
        """Move the last rows into rows that have become free, once a quarter of all are."""
        assert self._decoder is not None
        in_use = [row for row, slot in enumerate(self._slot_in) if slot is not None]
        if 4 * len(in_use) > 3 * len(self._slot_in):
            return
        sources = [row for row in in_use if row >= len(in_use)]
        targets = [row for row in range(len(in_use)) if self._slot_in[row] is None]
        if sources:
            self._decoder.copy_rows(sources, targets, 1 + int(self._rows.lengths[sources].max()))
            self._rows.move(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            slot = self._slot_in[source]
            assert slot is not None
            self._slot_in[target], self._row_of[slot] = slot, target
        del self._slot_in[len(in_use) :]

    def _fit(self, slots: Sequence[int], limits: dict[int, int]) -> None:
        """Make the cache and the record large enough for these turns."""
        assert self._decoder is not None
        # One column more, which rows write to that take no part in a step.
        needed = 1 + max(self._lengths[slot] + self._unfed[slot].size + limits[slot] for slot in slots)
        if needed > self._decoder.capacity:
            # A new size costs a graph where there is one, else only a copy, which is cheaper than memory.
            factor = 2.0 if self._capture else 1.25
            self._grow(self._decoder.num_rows, max(needed, int(factor * self._decoder.capacity)))
        turn_length = max(limits[slot] for slot in slots)
        if turn_length > self._rows.turn_length:
            self._grow(self._decoder.num_rows, self._decoder.capacity, max(turn_length, 2 * self._rows.turn_length))

    def _grow(self, num_rows: int, capacity: int, turn_length: int | None = None) -> None:
        assert self._decoder is not None
        self._graph = None
        self._capacity = capacity
        if (num_rows, capacity) != (self._decoder.num_rows, self._decoder.capacity):
            self._decoder.allocate(num_rows, capacity)
        old = self._rows
        self._rows = TurnRows.make(num_rows, turn_length or old.turn_length, old.tokens.device)
        for field in fields(TurnRows):
            before, now = getattr(old, field.name), getattr(self._rows, field.name)
            if before.ndim == 1:
                now[: len(before)] = before
            else:
                now[: len(before), : before.shape[1]] = before

    def _feed(self, slots: Sequence[int]) -> None:
        assert self._decoder is not None
        runs: list[tuple[int, TokenIds]] = []
        twins: list[tuple[int, int]] = []
        for slot in slots:
            ids = self._unfed[slot][:-1]
            if self._lengths[slot] == 0 and ids.size >= _SHORTEST_SHARED:
                key = ids.tobytes()
                twin = self._prompts.setdefault(key, slot)
                self._prompt_of[slot] = key
                if twin != slot:
                    twins.append((slot, twin))
                    continue
            if ids.size:
                runs.append((slot, ids))
        for piece in self._pieces(runs):
            chunk = make_chunk(
                [self._row(slot) for slot, _ in piece],
                [self._lengths[slot] for slot, _ in piece],
                [ids.size for _, ids in piece],
                self._rows.tokens.device,
            )
            token_ids = torch.from_numpy(np.concatenate([ids for _, ids in piece])).to(self._rows.tokens.device)
            self._decoder.prefill(token_ids, chunk)
        if twins:
            lengths = [self._unfed[slot].size - 1 for slot, _ in twins]
            rows, sources = [self._row(slot) for slot, _ in twins], [self._row(twin) for _, twin in twins]
            self._decoder.copy_rows(sources, rows, max(lengths))
        for slot in slots:
            self._lengths[slot] += self._unfed[slot].size - 1

    def _pieces(self, runs: Sequence[tuple[int, TokenIds]]) -> Iterator[list[tuple[int, TokenIds]]]:
        """``runs`` in parts of at most ``prefill_tokens`` tokens, or of one run."""
        piece: list[tuple[int, TokenIds]] = []
        size = 0
        for run in runs:
            if piece and size + run[1].size > self._prefill_tokens:
                yield piece
                piece, size = [], 0
            piece.append(run)
            size += run[1].size
        if piece:
            yield piece

    # Steps

    def _take_steps(self) -> None:
        assert self._decoder is not None
        if not self._capture:
            longest = self._longest() + self._steps - 1
            self._decoder.take_steps(self._rows.first(len(self._slot_in)), self._steps, self._sampling, longest)
            return
        if self._graph is None:
            self._graph = self._captured()
        for _ in range(self._steps):
            self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A step of all rows as a graph; what trying it out has changed is put back."""
        saved = [getattr(self._rows, field.name).clone() for field in fields(TurnRows)]
        self._rows.is_open.zero_()
        assert self._decoder is not None
        take = partial(self._decoder.take_steps, self._rows, 1, self._sampling, self._longest())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                take()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            take()
        for field, before in zip(fields(TurnRows), saved, strict=True):
            getattr(self._rows, field.name).copy_(before)
        return graph

    def _longest(self) -> int:
        """A bound of the columns that any row sees."""
        assert self._decoder is not None
        if self._rows.tokens.device.type != "cpu":
            return self._decoder.capacity
        return 1 + int(self._rows.lengths[: len(self._slot_in)].max())

    def _ended(self) -> list[tuple[int, SampledTurn]]:
        is_open = self._rows.is_open.cpu().numpy()
        slots = [slot for slot in self._open if not is_open[self._row(slot)]]
        if not slots:
            return []
        index = torch.tensor([self._row(slot) for slot in slots], device=self._rows.tokens.device)
        counts = self._rows.counts[index].cpu().numpy()
        longest = int(counts.max())
        tokens = self._rows.turn_tokens[index, :longest].cpu().numpy()
        logprobs = self._rows.turn_logprobs[index, :longest].cpu().numpy()
        found = []
        for slot, count, ids, numbers in zip(slots, counts.tolist(), tokens, logprobs, strict=True):
            turn = SampledTurn(ids[:count].copy(), numbers[:count].copy())
            if count < self._open[slot] and ids[count - 1] != self.codec.eos_id and not self._closes(turn.token_ids):
                self._reopen(slot)
                continue
            del self._open[slot]
            self._lengths[slot] += count  # the token before the turn was fed with it, its last one was not
            self._unfed[slot] = turn.token_ids[-1:]
            found.append((slot, turn))
        return found

    def _closes(self, token_ids: TokenIds) -> bool:
        return closes_turn(self.codec.decode(token_ids))

    def _reopen(self, slot: int) -> None:
        """Go on with a turn whose tokens, one by one, looked like a closing tag that its text does not hold."""
        row = self._row(slot)
        self._rows.tags[row] = 0
        self._rows.is_open[row] = True
