"""Searching and answering as a choice among a few numbered actions, for algorithms without a language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from search_gym.codec import TokenIds
from search_gym.episode import Episode
from search_gym.errors import ActionError, OptionError
from search_gym.scripted import write_turn
from search_gym.task import Task

Observation = dict[str, npt.NDArray[np.float32]]

_FUNCTION_WORDS = frozenset(
    "a an the this that these those what who whom whose which when where why how do does did is are was were be been "  # noqa: SIM905
    "has have had of in on at by for from to with and or not same it its he she his her they their there".split()
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.?!](?:\s|$)|\n")
_TITLE = re.compile(r'Doc \d+\(Title: "(.*?)"\)')
_TAG = re.compile(r"</?(?:think|information)>")


class Phrases(NamedTuple):
    """What a sentence mentions, in order: names (numbers included) and other phrases."""

    names: list[str]
    others: list[str]


def find_phrases(sentence: str) -> Phrases:
    """The runs of capitalised words, every number, and the runs of other words that are no function words.

    ``"Who is the mayor of New Ulm?"`` has the name ``New Ulm`` and the other phrase ``mayor``.
    """
    found = Phrases([], [])
    run: list[str] = []
    kind, end = "", 0

    def close() -> None:
        if run:
            (found.others if kind == "other" else found.names).append(" ".join(run))
            run.clear()

    for match in _WORD.finditer(sentence):
        word = match[0]
        if word.lower() in _FUNCTION_WORDS:
            word_kind = ""
        elif word[0].isdigit():
            word_kind = "number"
        else:
            word_kind = "name" if word[0].isupper() else "other"
        if word_kind != kind or kind == "number" or sentence[end : match.start()].strip():
            close()
        kind, end = word_kind, match.end()
        if kind:
            run.append(word)
    close()
    return found


class MacroAction(NamedTuple):
    """What an action's number stands for: indices of a name and a relation where it has them, and a fixed answer."""

    event: Literal["search", "answer"]
    name: int | None = None
    relation: int | None = None
    fixed: str | None = None


class MacroActions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Search for a name, for a relation or for both, or answer with a name: one action a turn.

    Every action becomes the text of a whole turn, is encoded and stepped through the environment, so that retrieval,
    limits, transcript, masks and reward are its own. Names are capitalised words and numbers of the question and then
    of the documents, numbered in the order in which they come up; relations are the other phrases of the question.
    An agent therefore sees which slots are filled and where from, never what the names are, and what it learns holds
    for names that it has never met.

    ## Action Space
    ``Discrete``: search name i; search relation j; search both; answer name i; give one of ``fixed_answers``.
    `actions` lists them. An action on an empty slot is an invalid turn. ``action_masks()`` says which make sense.

    ## Observation Space
    ``Dict`` of float32 arrays of zeros and ones. ``turn`` (max_turns + 1,): how many turns have been taken.
    ``names`` (num_names * (5 + num_relations),), row by row: the slot is filled, its name is in the question, it is a
    number, it is in the newest documents, it was searched for; then whether it shares a sentence of a document with
    each relation. ``relations`` (num_relations * 2,), row by row: the slot is filled, the relation was searched for.

    ## Arguments
    * ``num_names``, ``num_relations``: slots; what comes up when they are full is not seen.
    * ``fixed_answers``: answers that need no name, such as ``("yes", "no")``.

    Reward, ends and info are those of `SearchEnv`.
    """

    NAME_FEATURES = ("filled", "in_question", "is_number", "in_newest_documents", "searched")

    def __init__(
        self,
        env: gym.Env[TokenIds, TokenIds],
        num_names: int = 6,
        num_relations: int = 3,
        fixed_answers: Sequence[str] = (),
    ) -> None:
        """Raises OptionError: a number of slots below 1."""
        if num_names < 1 or num_relations < 1:
            raise OptionError(f"expected num_names >= 1 and num_relations >= 1, got {num_names} and {num_relations}")
        gym.utils.RecordConstructorArgs.__init__(
            self, num_names=num_names, num_relations=num_relations, fixed_answers=fixed_answers
        )
        super().__init__(env)
        self._task: Task = env.get_wrapper_attr("task")
        self._num_names, self._num_relations = num_names, num_relations
        names, relations = range(num_names), range(num_relations)
        self.actions = (
            *(MacroAction("search", i) for i in names),
            *(MacroAction("search", None, j) for j in relations),
            *(MacroAction("search", i, j) for i in names for j in relations),
            *(MacroAction("answer", i) for i in names),
            *(MacroAction("answer", fixed=answer) for answer in fixed_answers),
        )
        self.action_space = gym.spaces.Discrete(len(self.actions))
        self._names: list[str] = []
        self._relations: list[str] = []
        self._name_features = np.zeros((num_names, len(self.NAME_FEATURES) + num_relations), dtype=np.float32)
        self._relation_features = np.zeros((num_relations, 2), dtype=np.float32)
        self._turn = np.zeros(self._task.limits.max_turns + 1, dtype=np.float32)
        self.observation_space = gym.spaces.Dict(
            {key: gym.spaces.Box(0.0, 1.0, x.shape, np.float32) for key, x in self._observe().items()}
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the slots so far."""
        return tuple(self._names)

    @property
    def relations(self) -> tuple[str, ...]:
        """The relations in the slots."""
        return tuple(self._relations)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """See `SearchEnv.reset`."""
        _, info = self.env.reset(seed=seed, options=options)
        episode: Episode = self.env.get_wrapper_attr("episode")
        phrases = find_phrases(episode.question.text)
        for features in (self._name_features, self._relation_features, self._turn):
            features[:] = 0.0
        self._turn[0] = 1.0
        self._names = []
        self._relations = list(dict.fromkeys(phrases.others))[: self._num_relations]
        self._relation_features[: len(self._relations), 0] = 1.0
        self._add_names(phrases.names, "in_question")
        return self._observe(), info

    def step(self, action: int) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the turn that the action stands for; see `SearchEnv.step`.

        Raises:
            ActionError: not a number of `actions`.
        """
        if not 0 <= action < len(self.actions):
            raise ActionError(f"expected an action in [0, {len(self.actions)}), got {action}")
        chosen, codec = self.actions[action], self._task.codec
        text = self.describe(action)
        ids = codec.encode(text) if text else np.array([codec.eos_id], dtype=np.int64)
        observation, reward, terminated, truncated, info = self.env.step(ids)
        self._turn[:] = np.arange(len(self._turn)) == min(info["num_turns"], len(self._turn) - 1)
        if text and chosen.event == "search":
            if chosen.name is not None:
                self._name_features[chosen.name, self.NAME_FEATURES.index("searched")] = 1.0
            if chosen.relation is not None:
                self._relation_features[chosen.relation, 1] = 1.0
        if info["event"] == "search":
            self._read(codec.decode(observation))
        return self._observe(), reward, terminated, truncated, info

    def describe(self, action: int) -> str:
        """The text of the turn that an action stands for now; "" if it needs a slot that is empty."""
        event, name, relation, fixed = self.actions[action]
        if (name is not None and name >= len(self._names)) or (
            relation is not None and relation >= len(self._relations)
        ):
            return ""
        words = [fixed] if fixed is not None else []
        words += [self._names[name]] if name is not None else []
        words += [self._relations[relation]] if relation is not None else []
        return write_turn(event, " ".join(words))

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """(n,) bool; True = its slots are filled and, in the last turn, it is an answer. Never all False."""
        episode: Episode = self.env.get_wrapper_attr("episode")
        masks = np.array(
            [
                bool(self.describe(number)) and (action.event == "answer" or not episode.is_last_turn)
                for number, action in enumerate(self.actions)
            ]
        )
        return masks if masks.any() else np.ones_like(masks)

    def _read(self, text: str) -> None:
        """Take up the names that newly found documents mention, and which relations they are mentioned with."""
        names = self._name_features
        names[:, self.NAME_FEATURES.index("in_newest_documents")] = 0.0
        plain = _TAG.sub("\n", _TITLE.sub(r"\1\n", text))
        for sentence in _SENTENCE_END.split(plain):
            phrases = find_phrases(sentence)
            slots = self._add_names(phrases.names, "in_newest_documents")
            for j, relation in enumerate(self._relations):
                if relation in phrases.others:
                    names[slots, len(self.NAME_FEATURES) + j] = 1.0

    def _add_names(self, found: Sequence[str], feature: str) -> list[int]:
        """The slots of these names, as far as there are any, new ones filled; each gets ``feature``."""
        names, slots = self._name_features, []
        for name in found:
            if name not in self._names:
                if len(self._names) == self._num_names:
                    continue
                self._names.append(name)
            slot = self._names.index(name)
            slots.append(slot)
            names[slot, self.NAME_FEATURES.index("filled")] = 1.0
            names[slot, self.NAME_FEATURES.index("is_number")] = name[0].isdigit()
            names[slot, self.NAME_FEATURES.index(feature)] = 1.0
        return slots

    def _observe(self) -> Observation:
        arrays = {"turn": self._turn, "names": self._name_features, "relations": self._relation_features}
        return {key: features.flatten() for key, features in arrays.items()}
