"""The checks of exercise 1, and a reference that reads text letter by letter."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from search_gym.exercises.checking import Caller, Check
from search_gym.exercises.suspects import compare

Parsed = tuple[str, str]
Span = tuple[str, int, int]
Mask = npt.NDArray[np.bool_]

WORDS = ("Ada", "born", "in", "Who?", "42", " ", "\n", "  ")
TAGS = tuple(f"<{slash}{name}>" for name in ("search", "answer", "think", "information") for slash in ("", "/"))
NO_TAGS = ("<Search>", "</ANSWER>", "< search >", "<search", "/answer>", "<", ">", "search", "</>")


def parse(text: str) -> Parsed:
    """The definition: at each place from the left, is there an opening tag, and its closing tag after it?"""
    for start in range(len(text)):
        for event in ("search", "answer"):
            inside = start + len(event) + 2
            if text.startswith(f"<{event}>", start) and (stop := text.find(f"</{event}>", inside)) >= 0:
                return event, text[inside:stop].strip()
    return "invalid", ""


def _by_pattern(pattern: str, *, flags: int = re.DOTALL, which: int = 0, strip: bool = True) -> Callable[[str], Parsed]:
    def wrong(text: str) -> Parsed:
        found = [(m[1].lower(), m[2]) for m in re.finditer(pattern, text, flags)]
        if not found:
            return "invalid", ""
        event, content = found[which]
        return event, content.strip() if strip else content

    return wrong


def _one_before_the_other(first: str, second: str) -> Callable[[str], Parsed]:
    def wrong(text: str) -> Parsed:
        for event in (first, second):
            if found := re.search(f"<{event}>(.*?)</{event}>", text, re.DOTALL):
                return event, found[1].strip()
        return "invalid", ""

    return wrong


PAIR = r"<(search|answer)>(.*?)</\1>"
PARSERS: dict[str, Callable[[str], Parsed]] = {
    "the pattern is greedy, so that a content runs to the last closing tag. Use .*? in place of .*": _by_pattern(
        r"<(search|answer)>(.*)</\1>"
    ),
    "the last pair was taken. The turn has ended with the first; what follows was never part of it.": _by_pattern(
        PAIR, which=-1
    ),
    "the dot does not match line breaks. Give re.DOTALL.": _by_pattern(PAIR, flags=0),
    "an opening tag was closed by the other one. <search> needs </search>.": _by_pattern(
        r"<(search|answer)>(.*?)</(?:search|answer)>"
    ),
    "the content keeps its white space. Strip it.": _by_pattern(PAIR, strip=False),
    "tags in capitals were read. The environment does not read them, so your parser must not.": _by_pattern(
        PAIR, flags=re.DOTALL | re.IGNORECASE
    ),
    "a search was looked for before an answer. The pair that opens first counts.": _one_before_the_other(
        "search", "answer"
    ),
    "an answer was looked for before a search. The pair that opens first counts.": _one_before_the_other(
        "answer", "search"
    ),
}


def text(rng: np.random.Generator, most: int = 12) -> str:
    """Tags, words and what looks like a tag, in any order; half of the time with a pair in it."""
    parts = rng.choice((*WORDS, *TAGS, *TAGS, *NO_TAGS), size=int(rng.integers(0, most))).tolist()
    if rng.random() < 0.5:
        event = str(rng.choice(["search", "answer"]))
        content = "".join(rng.choice(WORDS, size=int(rng.integers(1, 4))).tolist())
        place = int(rng.integers(0, len(parts) + 1))
        parts[place:place] = [f"<{event}>", content, f"</{event}>"]
    return "".join(parts)


def _parses(call: Caller, rng: np.random.Generator) -> str | None:
    whole = "<think> {} </think> <{}>{}</{}>"
    cases = []
    for _ in range(40):
        event, content = str(rng.choice(["search", "answer"])), " ".join(rng.choice(WORDS[:5], size=3).tolist())
        cases.append((whole.format(rng.choice(WORDS), event, f" {content} ", event),))
    return _compare_parsers(call, cases)


def _parses_anything(call: Caller, rng: np.random.Generator) -> str | None:
    return _compare_parsers(call, [(text(rng),) for _ in range(600)])


def _compare_parsers(call: Caller, cases: list[tuple[str]]) -> str | None:
    names = ("event", "content")
    return compare(call, "parse_turn", cases, parse, arguments=("text",), results=names, suspects=PARSERS)


def length(pieces: list[str]) -> int:
    """The definition: the shortest run of tokens that shows a closing tag."""
    for n in range(1, len(pieces) + 1):
        if any(tag in "".join(pieces[:n]) for tag in ("</search>", "</answer>")):
            return n
    return len(pieces)


def _within_a_token(pieces: list[str]) -> int:
    return next((n for n, p in enumerate(pieces, 1) if "</search>" in p or "</answer>" in p), len(pieces))


def _ends_with(pieces: list[str]) -> int:
    so_far = ["".join(pieces[:n]) for n in range(1, len(pieces) + 1)]
    return next((n for n, t in enumerate(so_far, 1) if t.endswith(("</search>", "</answer>"))), len(pieces))


def _last(pieces: list[str]) -> int:
    ends = [n for n in range(1, len(pieces) + 1) if length(pieces[:n]) == n and _closes(pieces[:n])]
    ends += [
        n for n in range(1, len(pieces) + 1) if pieces[n - 1].find("</search>") + pieces[n - 1].find("</answer>") > -2
    ]
    return max(ends, default=len(pieces))


def _whole_pair(pieces: list[str]) -> int:
    ends = (n for n in range(1, len(pieces) + 1) if parse("".join(pieces[:n]))[0] != "invalid")
    return next(ends, len(pieces))


def _closes(pieces: list[str]) -> bool:
    joined = "".join(pieces)
    return "</search>" in joined or "</answer>" in joined


LENGTHS: dict[str, Callable[[list[str]], int]] = {
    "each token's text was looked at alone. A tag may lie across several tokens: look at the text so far.": (
        _within_a_token
    ),
    "the text so far has to end with the tag. A token may hold more than the tag's last letters, such as '>\\n'.": (
        _ends_with
    ),
    "the token that completes the tag was left out. It was sampled, so it belongs to the turn.": (
        lambda pieces: length(pieces) - _closes(pieces)
    ),
    "letters were counted, not tokens.": lambda pieces: len("".join(pieces[: length(pieces)])),
    "the turn goes on to the last closing tag.": _last,
    "the turn was ended by a whole pair. A closing tag ends it, whether it was opened or not.": _whole_pair,
    "a turn without a closing tag was said to have no tokens. All of them were sampled.": (
        lambda pieces: length(pieces) if _closes(pieces) else 0
    ),
}


def tokens(rng: np.random.Generator) -> list[str]:
    """A text with a closing tag or without, cut into tokens of one to six letters."""
    whole = text(rng) + str(rng.choice(["</search>", "</answer>", "</think>"])) + text(rng)
    cuts = [0]
    while cuts[-1] < len(whole):
        cuts.append(cuts[-1] + int(rng.integers(1, 7)))
    return [whole[a:b] for a, b in pairwise(cuts)]


def _counts_tokens(call: Caller, rng: np.random.Generator) -> str | None:
    cases = [(tokens(rng),) for _ in range(300)]
    return compare(call, "turn_length", cases, length, arguments=("pieces",), suspects=LENGTHS)


def mask_of(spans: list[Span], size: int, *kinds: str) -> Mask:
    """The definition: token by token."""
    mask = np.zeros(size, dtype=np.bool_)
    for kind, start, stop in spans:
        for t in range(start, stop):
            mask[t] = kind in kinds
    return mask


def _shifted(spans: list[Span], size: int, kind: str) -> Mask:
    mask = mask_of(spans, size, kind)
    return np.append(mask[1:], False) if size else mask


def _one_longer(spans: list[Span], size: int, kind: str) -> Mask:
    return mask_of([(k, start, min(stop + (k == kind), size)) for k, start, stop in spans if k == kind], size, kind)


def _first_only(spans: list[Span], size: int, kind: str) -> Mask:
    return mask_of([span for span in spans if span[0] == kind][:1], size, kind)


LOSS_MASKS: dict[str, Callable[[list[Span], int], Mask]] = {
    "the mask is True on everything after the prompt. What was retrieved was not sampled.": (
        lambda spans, size: mask_of(spans, size, "action", "observation")
    ),
    "the mask is True on every token. The policy did not sample the prompt and the documents.": (
        lambda spans, size: mask_of(spans, size, "action", "observation", "prompt")
    ),
    "the prompt is in the mask. The policy did not sample it.": (
        lambda spans, size: mask_of(spans, size, "action", "prompt")
    ),
    "it is the opposite of the info mask. The prompt and the padding are in neither.": (
        lambda spans, size: ~mask_of(spans, size, "observation")
    ),
    "the mask has the other polarity. True means: sampled by the policy.": (
        lambda spans, size: ~mask_of(spans, size, "action")
    ),
    "padding is in the mask. Behind the last span there is nothing that was sampled.": (
        lambda spans, size: ~mask_of(spans, size, "prompt", "observation")
    ),
    "spans were taken to include their stop. Like a slice, a span ends before it.": (
        lambda spans, size: _one_longer(spans, size, "action")
    ),
    "the mask is shifted by one. Here everything is indexed by the token that it talks about; the one shift between "
    "logits and tokens is the trainer's.": lambda spans, size: _shifted(spans, size, "action"),
    "only the first turn is in the mask.": lambda spans, size: _first_only(spans, size, "action"),
}
INFO_MASKS: dict[str, Callable[[list[Span], int], Mask]] = {
    "the prompt is in it. It is what the environment wrote *after* the prompt.": (
        lambda spans, size: mask_of(spans, size, "prompt", "observation")
    ),
    "it is the opposite of the loss mask. The prompt and the padding are in neither.": (
        lambda spans, size: ~mask_of(spans, size, "action")
    ),
    "spans were taken to include their stop. Like a slice, a span ends before it.": (
        lambda spans, size: _one_longer(spans, size, "observation")
    ),
}


def episode(rng: np.random.Generator) -> tuple[list[Span], int]:
    """The spans of an episode of one to four turns, and a length with padding or without."""
    spans: list[Span] = []
    at = 0
    turns = int(rng.integers(1, 5))
    for kind in ("prompt", *("action", "observation") * (turns - 1), "action"):
        spans.append((kind, at, at + int(rng.integers(1, 5))))
        at = spans[-1][2]
    return spans, at + int(rng.integers(0, 4))


def _check_mask(
    name: str, kind: str, suspects: dict[str, Callable[[list[Span], int], Mask]]
) -> Callable[..., str | None]:
    def run(call: Caller, rng: np.random.Generator) -> str | None:
        cases = [episode(rng) for _ in range(100)]
        return compare(
            call,
            name,
            cases,
            lambda spans, size: mask_of(spans, size, kind),
            arguments=("spans", "length"),
            suspects=suspects,
        )

    return run


CHECKS = (
    Check(
        "well-formed turns",
        2,
        "A turn that is read wrongly sends another query than the policy meant, or is called invalid and is wasted.",
        _parses,
    ),
    Check(
        "any text",
        3,
        "A policy in training writes everything. Whatever your parser reads where the rule reads something else is a "
        "difference between the environment and the reward, and the policy will find it.",
        _parses_anything,
    ),
    Check(
        "where a turn ends",
        2,
        "Tokens after the end are trained on though they did nothing; a tag that is cut in half is never seen again.",
        _counts_tokens,
    ),
    Check(
        "loss mask",
        2,
        "Whatever is True here gets a gradient. With retrieved text in it the policy learns to write documents, with "
        "the prompt to write questions.",
        _check_mask("loss_mask", "action", LOSS_MASKS),
    ),
    Check(
        "info mask",
        1,
        "It tells how much of an episode was retrieved, and lets a test change just that and expect the same loss.",
        _check_mask("info_mask", "observation", INFO_MASKS),
    ),
)
