"""Every error that search_gym raises on purpose.

Each class is also a child of the standard exception that a caller would expect, so ``except ValueError`` keeps working.
Messages follow one pattern: "expected ..., got ...; do ...".
"""

from __future__ import annotations


class SearchGymError(Exception):
    """The parent of all errors raised on purpose by search_gym and agents."""


class ActionError(SearchGymError, ValueError):
    """An action is not a 1-D array of token ids inside the codec's vocabulary."""


class EpisodeFinishedError(SearchGymError, RuntimeError):
    """A step was asked of an episode that has ended, or that was never started."""


class PromptError(SearchGymError, ValueError):
    """A question leaves no room for the policy inside ``max_context_tokens``."""


class CodecError(SearchGymError, ValueError):
    """A codec cannot represent what it was given, or does not fit the model it is used with."""


class QuestionError(SearchGymError, ValueError):
    """A question set is malformed; the message names the file, the line and the field."""


class RetrievalError(SearchGymError, RuntimeError):
    """A retriever failed: it raised, hung, or returned something other than one list of documents per query."""


class PartialRetrievalError(RetrievalError):
    """A retriever answered some queries of a batch and failed on others.

    ``results`` has one entry per query, in their order: its documents, or the `RetrievalError` that it met.
    """

    def __init__(self, message: str, results: list[list | RetrievalError]) -> None:
        super().__init__(message)
        self.results = results


class IndexFileError(SearchGymError, ValueError):
    """A saved index is missing, incomplete, damaged, or of another kind or version than the one asked for."""


class CorpusError(SearchGymError, ValueError):
    """A corpus is empty or malformed; the message names the file, the line and the field."""


class StateError(SearchGymError, ValueError):
    """A saved state is not one that this environment can restore."""


class UnknownNameError(SearchGymError, LookupError):
    """A plug-in name is unknown; the message suggests the closest known names."""


class OptionError(SearchGymError, ValueError):
    """An option has a value outside its documented range."""


class MissingDependencyError(SearchGymError, ImportError):
    """An optional dependency is not installed; the message holds the install line."""
