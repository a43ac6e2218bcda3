"""Whether an episode's later searches use what its first ones found, and how much of the gold evidence it saw."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agents.rollout import Rollout
from search_gym import TokenCodec
from search_gym.rewards import normalize_answer

_TITLE = re.compile(r'Doc \d+\(Title: "(.*?)"\)')


def chain_scores(rollout: Rollout, codec: TokenCodec, titles: Mapping[str, str]) -> dict[str, float]:
    """``chains``: 1 if a later query names the title of a document shown before, which the question does not name.

    ``support``: the share of the question's gold passages whose title was shown, in the prompt or after a search; 0
    where the question has none. ``titles`` holds those of all passages, by id.
    """
    shown: list[list[str]] = []
    for kind, start, stop in rollout.spans:
        if kind != "action":
            shown.append(_TITLE.findall(codec.decode(rollout.token_ids[start:stop])))
    queries = [normalize_answer(turn.content) for turn in rollout.turns if turn.event == "search"]
    question = normalize_answer(rollout.question.text)
    found: set[str] = set()
    is_chain = False
    # The prompt comes first; after the query at i, what it found.
    observed = shown[1:] + [[]] * len(queries)
    searches = [i for i, turn in enumerate(rollout.turns) if turn.event == "search"]
    for place, query in zip(searches, queries, strict=True):
        is_chain |= any(title in query for title in found)
        names = [normalize_answer(title) for title in observed[place]]
        found |= {title for title in names if len(title) > 2 and title not in question}
    gold = {titles[i] for i in rollout.question.metadata.get("supporting_ids", ())}
    seen = {title for block in shown for title in block}
    return {"chains": float(is_chain), "support": round(len(gold & seen) / len(gold), 4) if gold else 0.0}
