"""Another retriever's documents in the order of a cross-encoder, which reads the query and a document together.

Nogueira and Cho 2019, "Passage Re-ranking with BERT", arXiv 1901.04085.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from search_gym import retrievers as plugin
from search_gym.corpus import format_contents
from search_gym.errors import OptionError, RetrievalError
from search_gym.retrievers import Document, Retriever
from search_gym.retrievers._models import Compute, Floats, Model, Runtime, clean, load_model, run_in_batches
from search_gym.retrievers._presets import CROSS_ENCODERS
from search_gym.retrievers._ranking import check_k
from search_gym.retrievers._wrapping import Results, attempt, complete, documents_of

SCORE_TOLERANCE = 1e-4
"""Rounding, as in `dense`; logits are ten times as large as inner products of unit vectors."""
_DEFAULT = "ms-marco-MiniLM-L-12-v2"
_PAIRS_AT_A_TIME = 4096


class CrossEncoder:
    """Scores pairs of a query and a passage with a classifier; a higher score is a better match.

    The score is the logit of a model with one label, and the log-odds of the second label (the difference of the
    logits) of a model with two.
    """

    def __init__(self, model: Model, *, max_length: int = 512, batch_size: int = 64) -> None:
        """Raises OptionError: the model has more than two labels, or ``max_length`` is below 8."""
        if max_length < 8:
            raise OptionError(f"expected max_length >= 8, got {max_length}; do: correct it")
        self._model = model
        self._max_length = max_length
        self._batch_size = batch_size
        self.score(["", ""], ["", ""])

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> Floats:
        """Scores (n,) of ``queries`` (n,) each with its own of ``passages`` (n,)."""
        parts = [np.empty(0, dtype=np.float32)]
        for start in range(0, len(queries), _PAIRS_AT_A_TIME):
            stop = start + _PAIRS_AT_A_TIME
            firsts, seconds = ([clean(text) for text in texts[start:stop]] for texts in (queries, passages))
            inputs = self._model.tokenize(firsts, seconds, self._max_length)
            logits = run_in_batches(self._model, inputs, self._batch_size, self._model.logits)
            if logits.shape[1] > 2:
                raise OptionError(
                    f"expected a cross-encoder with one label or two, got {logits.shape[1]}; do: use one for relevance"
                )
            parts.append(logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0])
        return np.concatenate(parts)


class RerankRetriever:
    """Asks ``retriever`` for ``top`` documents (``k`` if that is more) and returns the ``k`` that score best.

    Each query is scored with its own documents only, as ``contents``, a title in quotes, a newline and the text; their
    scores become the cross-encoder's. Ties keep the order of ``retriever``.
    """

    def __init__(self, retriever: Retriever, cross_encoder: CrossEncoder, *, top: int = 20) -> None:
        """Raises OptionError: ``top`` is below 1."""
        if top < 1:
            raise OptionError(f"expected top >= 1, got {top}; do: rerank at least one document")
        self.retriever = retriever
        self.documents = documents_of(retriever)
        self.cross_encoder = cross_encoder
        self.top = top

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """Raises OptionError: ``k`` is below 1. RetrievalError: what the retriever raises, or scores that are NaN."""
        check_k(k)
        if not queries:
            return []
        different = list(dict.fromkeys(queries))
        found = attempt(self.retriever, different, max(k, self.top))
        results = dict(zip(different, self._rerank(different, found, k), strict=True))
        return [list(documents) for documents in complete([results[query] for query in queries])]

    def _rerank(self, queries: Sequence[str], found: Results, k: int) -> Results:
        pairs = [
            (query, format_contents(document))
            for query, documents in zip(queries, found, strict=True)
            if not isinstance(documents, RetrievalError)
            for document in documents
        ]
        scores = self.cross_encoder.score([query for query, _ in pairs], [text for _, text in pairs])
        if not np.isfinite(scores).all():
            raise RetrievalError("expected finite scores from the cross-encoder, got others; do: check its weights")
        waiting = iter(scores.tolist())
        results: Results = []
        for documents in found:
            if isinstance(documents, RetrievalError):
                results.append(documents)
                continue
            scored = [replace(document, score=next(waiting)) for document in documents]
            results.append(sorted(scored, key=lambda document: -document.score)[:k])
        return results


def make(
    documents: Sequence[Document],
    *,
    retriever: str | Mapping[str, Any] | Retriever = "bm25",
    cross_encoder: str = _DEFAULT,
    top: int = 20,
    max_length: int | None = None,
    runtime: Runtime | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    threads: int | None = None,
) -> RerankRetriever:
    """See ``RerankRetriever``.

    Args:
        retriever: one that is described is built over the same ``documents``.
        cross_encoder: a preset, a directory, or a name on the Hugging Face hub.
        max_length: tokens of a pair that are read, 512 by default; the longer of the two texts is cut.
        runtime: as in `dense`, and so are the next four.
        device: "auto" is a GPU if there is one.
        precision: "fp32", "fp16" (GPU) or "bf16".
        batch_size: pairs scored at a time.
        threads: of the CPU.

    Raises:
        OptionError: options out of range, or no such model.
        MissingDependencyError: a library is missing.
    """
    compute = Compute(device, precision, batch_size, threads)
    inner = plugin.load(retriever, documents)
    known = None if Path(cross_encoder).is_dir() else CROSS_ENCODERS.get(cross_encoder)
    model = load_model(known.model if known else cross_encoder, runtime, "score", compute)
    length = max_length if max_length is not None else known.max_length if known else 512
    return RerankRetriever(inner, CrossEncoder(model, max_length=length, batch_size=batch_size), top=top)
