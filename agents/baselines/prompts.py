"""What the prompting methods share: worked examples, how questions and passages are laid out, how answers are read.

The examples and sentences are our own. Each paper shows how its method lays out an example: a chain of thought that
ends in "So the answer is" (Wei et al. 2022, arXiv 2201.11903; the words are IRCoT's, Trivedi et al. 2022, arXiv
2212.10509), passages under their titles before the question (IRCoT), numbered thoughts, actions and observations
(ReAct, Yao et al. 2022, arXiv 2210.03629).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search_gym.errors import OptionError

Passage = tuple[str, str]

ANSWER_IS = re.compile(r"\banswer is\b:?", re.IGNORECASE)
# A full stop after an initial or a title ends nothing.
_SENTENCE_END = re.compile(r"(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|Jr|Sr|vs|No))(?<!\bMrs)[.!?](?=\s)")


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a worked example: what is missing, the query for it, the passage found, what it says."""

    need: str
    query: str
    passage: Passage
    finding: str


@dataclass(frozen=True, slots=True)
class Example:
    """A question that is solved in several hops."""

    question: str
    hops: tuple[Hop, ...]
    conclusion: str
    answer: str

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The passages of all hops."""
        return tuple(hop.passage for hop in self.hops)

    @property
    def chain(self) -> str:
        """The findings, the conclusion and the answer as a chain of thought."""
        findings = [hop.finding for hop in self.hops]
        return " ".join(
            [*findings, *([self.conclusion] if self.conclusion else []), f"So the answer is: {self.answer}."]
        )


EXAMPLES = (
    Example(
        question="In which city was the composer of the opera Carmen born?",
        hops=(
            Hop(
                need="I need to find out who composed the opera Carmen, then where that person was born.",
                query="composer of the opera Carmen",
                passage=(
                    "Carmen",
                    "Carmen is an opera in four acts by the French composer Georges Bizet. It was first performed in "
                    "March 1875 at the Opéra-Comique.",
                ),
                finding="The opera Carmen was composed by Georges Bizet.",
            ),
            Hop(
                need="Carmen was composed by Georges Bizet. I need to find out where he was born.",
                query="Georges Bizet birthplace",
                passage=(
                    "Georges Bizet",
                    "Georges Bizet, born in Paris on 25 October 1838, was a French composer. He died in Bougival three "
                    "months after the first performance of his last opera.",
                ),
                finding="Georges Bizet was born in Paris.",
            ),
        ),
        conclusion="",
        answer="Paris",
    ),
    Example(
        question="Do the rivers Po and Ebro flow through the same country?",
        hops=(
            Hop(
                need="I need to find out through which countries the Po and the Ebro flow.",
                query="river Po country",
                passage=(
                    "Po (river)",
                    "The Po flows eastward across northern Italy. No river of Italy is longer.",
                ),
                finding="The Po flows through Italy.",
            ),
            Hop(
                need="The Po flows through Italy. I need to find out through which country the Ebro flows.",
                query="river Ebro country",
                passage=("Ebro", "The Ebro rises in Cantabria and is the longest river that lies wholly in Spain."),
                finding="The Ebro flows through Spain.",
            ),
        ),
        conclusion="Italy and Spain are not the same country.",
        answer="no",
    ),
    Example(
        question="Which mountain is higher, Mont Blanc or Mount Kenya?",
        hops=(
            Hop(
                need="I need to find out the heights of Mont Blanc and of Mount Kenya.",
                query="height of Mont Blanc",
                passage=(
                    "Mont Blanc",
                    "Mont Blanc is the highest mountain of the Alps. It is 4,806 metres high.",
                ),
                finding="Mont Blanc is 4,806 metres high.",
            ),
            Hop(
                need="Mont Blanc is 4,806 metres high. I need to find out the height of Mount Kenya.",
                query="height of Mount Kenya",
                passage=(
                    "Mount Kenya",
                    "Mount Kenya is an extinct volcano, and with 5,199 metres the second-highest mountain of Africa.",
                ),
                finding="Mount Kenya is 5,199 metres high.",
            ),
        ),
        conclusion="5,199 metres is more than 4,806 metres.",
        answer="Mount Kenya",
    ),
)


def take_examples(count: int) -> tuple[Example, ...]:
    """The first ``count`` examples.

    Raises:
        OptionError: there are not so many.
    """
    if not 0 <= count <= len(EXAMPLES):
        raise OptionError(f"expected 0 to {len(EXAMPLES)} examples, got {count}")
    return EXAMPLES[:count]


def ask(question: str) -> str:
    """``question`` as one line that ends in a question mark."""
    text = " ".join(question.split())
    return f"Question: {text if text.endswith('?') else text + '?'}\n"


def show(passages: Sequence[Passage]) -> str:
    """``passages``, each under its title, and an empty line after each."""
    return "".join(f"Title: {title}\n{text}\n\n" for title, text in passages) or "(no passages were found)\n\n"


def short_answer(text: str) -> str:
    """The answer in a completion: what follows the last "answer is" on its line, else the last line with any text.

    The full stop, quotes and emphasis around it are taken off.
    """
    *_, last = ["", *(line for line in text.split("\n") if line.strip())]
    for match in ANSWER_IS.finditer(text):
        last = text[match.end() :].strip().partition("\n")[0]
    return re.sub(r"^(?:answer:)?[\s\"'*`]+|[\s\"'*`.]+$", "", last.strip(), flags=re.IGNORECASE)


def sentences(text: str) -> Iterator[str]:
    """The sentences of ``text``, stripped; what a line says from "answer is" on is not divided."""
    for line in text.split("\n"):
        start = 0
        for end in (match.end() for match in _SENTENCE_END.finditer(line)):
            if ANSWER_IS.search(line[start:end]):
                break
            yield line[start:end].strip()
            start = end
        if line[start:].strip():
            yield line[start:].strip()
