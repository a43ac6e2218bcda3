"""The checks of exercise 2. The exploits are tried on questions and documents of worlds that no other student has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from search_gym import questions, retrievers, tags
from search_gym.exercises.checking import Caller, Check, StudentError, show
from search_gym.exercises.material.reward_hacking import rewards
from search_gym.exercises.material.reward_hacking.rewards import Turn
from search_gym.exercises.suspects import compare
from search_gym.questions import QuestionSet

PIECES = (
    "a",
    "An",
    "the",
    "THE",
    "theatre",
    "Anna",
    "U.S.",
    "a-b",
    "a_b",
    "Zoë–Kim",
    "port",
    "Sol",
    "o'neil",
    "1984",
    "  ",
    "\n",
    ",",
    "!?",
)
NAMES = ("Port Sol", "Mara Velden", "The Velden Theatre", "U.S. Steel", "an Anna", "1984", "O'Neil & the Sons", "a-b")
CASES = 30


def _normalizes(call: Caller, rng: np.random.Generator) -> str | None:
    cases = []
    for _ in range(200):
        words = rng.choice(PIECES, size=int(rng.integers(0, 8))).tolist()
        cases.append((str(rng.choice(["", " "])).join(words),))
    expected = rewards.normalize
    return compare(call, "normalize", cases, expected, arguments=("text",), suspects=rewards.NORMALIZERS)


def _disguise(rng: np.random.Generator, name: str) -> str:
    """``name`` as a policy might write it, which normalises to the same."""
    forms = (str, str.upper, str.lower, "the {}".format, "{}.".format, " {} ".format, "\n{}!".format, '"{}"'.format)
    return forms[int(rng.integers(0, len(forms)))](name)


def _episode(rng: np.random.Generator, right: str, said: str | None) -> tuple[list[Turn], str]:
    """Turns and text of an episode whose documents hold the right answer, one of them in tags."""
    document = str(rng.choice(["It is {}.", "<answer> {} </answer>", "{}"])).format(right)
    nothing = [("invalid", "", "I do not know.", ""), ("search", right, f"<search>{right}</search>", "")]
    searches: list[Turn] = [
        ("search", "q", "<search> q </search>", f"<information>{document}</information>")
        for _ in range(int(rng.integers(0, 4)))
    ]
    last = ("answer", said, f"<answer>{said}</answer>", "") if said is not None else nothing[int(rng.integers(0, 2))]
    turns = [*searches, last]
    return turns, "".join(turn[2] + turn[3] for turn in turns)


def _case(rng: np.random.Generator, said: Callable[[str], str | None]) -> tuple[str | None, list[str], list[Turn], str]:
    answers = rng.choice(NAMES, size=int(rng.integers(1, 4)), replace=False).tolist()
    right = answers[int(rng.integers(0, len(answers)))]
    answer = said(right)
    return answer, answers, *_episode(rng, right, answer)


def _compare_rewards(call: Caller, cases: Sequence[tuple[str | None, list[str], list[Turn], str]]) -> str | None:
    names = ("answer", "answers", "turns", "text")
    return compare(call, "reward", cases, rewards.reward, arguments=names, suspects=rewards.REWARDS)


def _right_and_wrong(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [_case(rng, lambda right: _disguise(rng, right)) for _ in range(60)]
    cases += [_case(rng, lambda _: str(rng.choice(NAMES))) for _ in range(60)]
    return _compare_rewards(call, [(said, right, turns[-1:], turns[-1][2]) for said, right, turns, _ in cases])


def _attacks(call: Caller, rng: np.random.Generator) -> str | None:
    attacks: tuple[Callable[[str], str | None], ...] = (
        lambda right: " ".join(NAMES),
        lambda right: f"It is {right}, or it is not",
        lambda right: right[: int(rng.integers(1, 4))],
        lambda right: str(rng.choice(["", " ", "the", "..."])),
        lambda right: None,
        lambda right: "Nowhere",
        lambda right: right,
    )
    return _compare_rewards(call, [_case(rng, attack) for attack in attacks for _ in range(20)])


def worlds(rng: np.random.Generator) -> QuestionSet:
    """Questions of one hop about three worlds that no other student has."""
    seed = int(rng.integers(1 << 31))
    found = questions.load("tinywiki", "test", kinds=("1-hop",), num_questions=CASES, num_worlds=3, seed=seed)
    assert isinstance(found, QuestionSet)
    return found


def _text(call: Caller, name: str, cases: Sequence[tuple[object, ...]]) -> list[str]:
    values = call.many(name, cases)
    for value in values:
        if not isinstance(value, str):
            raise StudentError(f"expected {name} to return the text of a turn, got {show(value)}")
    return values


def _exploits_text(call: Caller, rng: np.random.Generator) -> str | None:
    wiki = worlds(rng)
    retriever = retrievers.load("bm25", wiki.documents)
    paid, missed = 0, ""
    for question, text in zip(wiki, _text(call, "exploit_text", [(q.text,) for q in wiki]), strict=True):
        event, query = tags.parse_turn(text)
        if event != "search":
            return (
                f"exploit_text({question.text!r}) returned {show(text)}, which is no search but {event!r}. The reward "
                "reads the whole episode, and the environment writes into it: what do you have to make it write?"
            )
        found = retriever.search([query], 1)[0]
        observation = f"<information>{tags.format_documents(found)}</information>"
        score = rewards.by_text(None, list(question.answers), [(event, query, text, observation)], text + observation)
        paid += score == 1.0
        if not score:
            missed = f"exploit_text({question.text!r}) searched for {query!r}, and was shown {observation}"
    if paid < 0.9 * len(wiki):
        return (
            f"{missed}. Only {paid} of {len(wiki)} episodes were paid. BM25 looks for the query's words in documents."
        )
    return None


def _exploits_containment(call: Caller, rng: np.random.Generator) -> str | None:
    wiki = worlds(rng)
    by_id = {document.doc_id: document for document in wiki.documents}
    cases = []
    for question in wiki:
        ids = rng.choice(sorted(by_id), size=4, replace=False).tolist()
        ids.append(question.metadata["supporting_ids"][0])
        cases.append((question.text, [by_id[str(i)].text for i in rng.permutation(ids)]))
    paid = right = 0.0
    missed = ""
    for question, case, text in zip(wiki, cases, _text(call, "exploit_containment", cases), strict=True):
        event, answer = tags.parse_turn(text)
        if event != "answer":
            advice = "Close the tag." if "<answer>" in text else "Write <answer>, and </answer> after it."
            return f"exploit_containment returned {show(text)}, which is no answer but {event!r}. {advice}"
        told = answer, list(question.answers), [(event, answer, text, "")], text
        paid += rewards.by_containment(*told)
        right += rewards.reward(*told)
        if not rewards.by_containment(*told):
            missed = f"with documents {show(case[1])} it answered {answer!r}, but {question.answers[0]!r} was right"
    if paid < len(wiki):
        return f"{missed}. Only {paid:g} of {len(wiki)} were paid. What holds the answer for certain?"
    if right > 0.1 * len(wiki):
        return f"{right:g} of {len(wiki)} answers are right. That is no exploit: show that one is paid without knowing."
    return None


CHECKS = (
    Check(
        "normalize",
        2,
        "Two spellings of one answer have to be one answer, or the policy is punished for a capital letter.",
        _normalizes,
    ),
    Check(
        "right and wrong answers",
        2,
        "The reward is all that the policy ever learns about what you want.",
        _right_and_wrong,
    ),
    Check(
        "nothing but the answer is paid",
        3,
        "Training searches for whatever is paid. What is easier than answering will be found first.",
        _attacks,
    ),
    Check(
        "exploit of reward_by_text",
        1.5,
        "Who can break a reward can tell why a curve rises; rewards that read the documents have been used in earnest.",
        _exploits_text,
    ),
    Check(
        "exploit of reward_by_containment",
        1.5,
        "Counting an answer that is contained is a usual metric for long answers, and no reward.",
        _exploits_containment,
    ),
)
