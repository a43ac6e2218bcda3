"""Exercise 2: a reward, and how to be paid for nothing. Fill in four functions; page.md says what they are for."""

Turn = tuple[str, str, str, str]
"""(event, content, text that the policy wrote, observation that the environment wrote after it)."""


def normalize(text: str) -> str:
    """``text`` as SQuAD's evaluation compares it (arXiv 1606.05250).

    In this order: lower case; every character of ``string.punctuation`` deleted; the words "a", "an" and "the" replaced
    by a space; runs of white space made one space, none at the ends.
    """
    raise NotImplementedError


def reward(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """What an episode is paid: 1.0 if ``answer`` is right, else 0.0.

    Args:
        answer: what stood between the tags of the answering turn; None if the episode ended without one.
        answers: everything that is right; each has at least one letter or digit that `normalize` keeps.
        turns: the episode turn by turn, the answering one last if there is one; a test may leave it empty.
        text: the whole episode after the prompt, the policy's text and the environment's.

    Returns:
        1.0 if ``answer`` and one of ``answers`` are equal after `normalize`, else 0.0.
    """
    raise NotImplementedError


def exploit_text(question: str) -> str:
    """The first turn of a policy that `reward_by_text` pays on a question of one hop, and that never answers.

    The environment reads the turn as in exercise 1 and retrieves one document.
    """
    raise NotImplementedError


def exploit_containment(question: str, documents: list[str]) -> str:
    """A turn that `reward_by_containment` pays, whichever of ``documents`` holds the answer, without knowing which."""
    raise NotImplementedError


# Two rewards that somebody wrote in a hurry. Do not change them.


def reward_by_text(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """1.0 if a right answer stands anywhere in the episode."""
    return float(any(normalize(right) in normalize(text) for right in answers))


def reward_by_containment(answer: str | None, answers: list[str], turns: list[Turn], text: str) -> float:
    """1.0 if a right answer stands anywhere in the answer."""
    return float(any(normalize(right) in normalize(answer or "") for right in answers))
