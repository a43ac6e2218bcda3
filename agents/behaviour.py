"""What the policy of a round does, beyond how well: what it thinks of its good and bad episodes, and what it asks for.

docs/metrics.md explains every name.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from agents.rollout import Rollout
from search_gym import TokenCodec
from search_gym.rewards import Outcome, TurnRecord, em_score, has_valid_structure, normalize_answer


def behaviour_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Log-likelihood of right and wrong episodes, and how queries differ; what there is none of is left out."""
    return {**episode_logprobs(rollouts), **query_metrics(rollouts)}


def episode_logprobs(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The mean log-probability, in nats, of the sampled tokens of episodes that were an exact match, and of the others.

    Both are those at sampling. When training lowers both, likelihood is displaced (arXiv 2512.04220).
    """
    totals: dict[bool, list[float]] = {True: [0.0, 0], False: [0.0, 0]}
    for rollout in rollouts:
        total = totals[em_score(rollout.answer, rollout.question.answers) == 1.0]
        total[0] += float(rollout.logprobs.sum(dtype=np.float64))
        total[1] += len(rollout.logprobs)
    names = {True: "rollout/logprob_correct", False: "rollout/logprob_incorrect"}
    return {names[is_right]: total / count for is_right, (total, count) in totals.items() if count}


def query_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How many queries are different, how many repeat an earlier one of their episode, and how far first queries depend
    on the question; queries are compared as `normalize_answer` leaves them. Empty without searches."""
    queries = [
        [normalize_answer(turn.content) for turn in rollout.turns if turn.event == "search"] for rollout in rollouts
    ]
    total = sum(map(len, queries))
    if not total:
        return {}
    questions = [normalize_answer(rollout.question.text) for rollout in rollouts]
    candidates = list(dict.fromkeys(questions))
    pairs = Counter((own[0], question) for own, question in zip(queries, questions, strict=True) if own)
    found = recognised(pairs, candidates)
    return {
        "rollout/distinct_queries": len({query for own in queries for query in own}) / total,
        "rollout/repeated_queries": sum(len(own) - len(set(own)) for own in queries) / total,
        "rollout/query_retrieval": found,
        "rollout/query_information": fano_bound(found, len(candidates)),
    }


def recognised(pairs: Counter[tuple[str, str]], candidates: Sequence[str]) -> float:
    """How often a query tells which of ``candidates`` it was written for, by its words.

    A candidate scores the summed inverse document frequency, log(N / n) for a word that n of the N candidates hold, of
    the words that it shares with the query. The right one is found if none scores higher; where several score as high,
    it counts one over their number. A query that says nothing about its question therefore finds 1 / N.

    Args:
        pairs: how many times each pair of a query and the candidate that it was written for occurs, at least one.
        candidates: different texts.
    """
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(candidates):
        for word in set(text.split()):
            holders[word].append(i)
    place = {text: i for i, text in enumerate(candidates)}
    hits, scores = 0.0, {}
    for (query, question), count in pairs.items():
        if query not in scores:
            score = np.zeros(len(candidates))
            for word in set(query.split()) & holders.keys():
                score[holders[word]] += math.log(len(candidates) / len(holders[word]))
            scores[query] = score.round(9)  # equal sums of the same terms, in whatever order
        score = scores[query]
        hits += count * (score[place[question]] == score.max()) / np.count_nonzero(score == score.max())
    return float(hits / pairs.total())


def fano_bound(accuracy: float, num_candidates: int) -> float:
    """The least mutual information, in nats, between a query and the question that it was written for, when one of
    ``num_candidates`` equally likely questions is named right from the query with this ``accuracy``.

    With the error rate e = 1 - accuracy, I >= log N - h(e) - e log(N - 1), h being the binary entropy (Fano's
    inequality; Cover and Thomas 2006, equation 2.130); never below 0, and at most log N.
    """
    if num_candidates < 2:
        return 0.0
    error = 1.0 - accuracy
    entropy = -sum(p * math.log(p) for p in (error, accuracy) if p > 0)
    return max(0.0, math.log(num_candidates) - entropy - error * math.log(num_candidates - 1))


def valid_structure(rollouts: Sequence[Rollout], codec: TokenCodec) -> float:
    """The share of episodes whose form is right from beginning to end (`has_valid_structure`).

    Decodes every token of every episode, which is cheap for small models alone; training does not log it.
    """
    return float(np.mean([has_valid_structure(_outcome(rollout, codec)) for rollout in rollouts]))


def _outcome(rollout: Rollout, codec: TokenCodec) -> Outcome:
    """What the environment's reward saw of the episode."""
    texts: list[list[str]] = []
    for kind, start, stop in rollout.spans[1:]:
        text = codec.decode(rollout.token_ids[start:stop])
        if kind == "action":
            texts.append([text, ""])
        else:
            texts[-1][1] += text
    turns = [
        TurnRecord(turn.event, turn.content, text, observation)  # type: ignore[arg-type]
        for turn, (text, observation) in zip(rollout.turns, texts, strict=True)
    ]
    everything = "".join(text + observation for text, observation in texts)
    return Outcome(rollout.answer, rollout.question.answers, tuple(turns), everything)
