"""Questions and passages in JSON lines, in the layout of FlashRAG (Jin et al. 2024, arXiv 2405.13576).

A question is ``{"id", "question", "golden_answers": [...], "metadata": {...}}``, a passage ``{"id", "contents"}`` whose
contents are a title in double quotes, a newline and the text.
"""

from __future__ import annotations

from pathlib import Path

from search_gym._jsonl import rows
from search_gym.corpus import load_corpus
from search_gym.errors import OptionError, QuestionError
from search_gym.questions import QuestionSet
from search_gym.questions._reading import read_question

COLON_OPTION = "path"


def load(split: str, *, path: str | Path, corpus: str | Path | None = None, limit: int | None = None) -> QuestionSet:
    """The first ``limit`` questions of the file ``path`` that belong to ``split``, with the passages of ``corpus``.

    ``corpus`` is a file or folder that `search_gym.corpus.load_corpus` reads.
    A question belongs to the split that its ``metadata.split`` names; one that names none belongs to every split, and
    ``split="all"`` takes them all. ``metadata.type`` (FlashRAG's word) is repeated as ``metadata["kind"]``.

    Raises:
        QuestionError: the file is malformed, or holds no question of ``split``. CorpusError: the corpus is malformed.
        OptionError: ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"expected a limit of at least 1, got {limit}; do: leave it out to take all questions")
    questions = [read_question(row) for row in rows(Path(path), QuestionError)]
    chosen = [q for q in questions if split in ("all", q.metadata.get("split", split))]
    if not chosen:
        splits = sorted({q.metadata["split"] for q in questions})
        raise QuestionError(
            f"{path}: expected questions of the split {split!r}, got only {splits}; do: pick one of them"
        )
    return QuestionSet(chosen[:limit], load_corpus(corpus) if corpus is not None else ())
