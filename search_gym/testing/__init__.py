"""A span-invariance kit: does what a sampled token receives depend on the tokens that the environment wrote?

It takes an advantage estimator, a loss, a token pipeline or an environment of any trainer, tries it on random batches,
and says in plain words what depends on what. ``docs/testing.md`` shows it at work on other trainers' code.

A ``subject`` is a function of one `TokenBatch`; a lambda adapts any signature::

    check_advantages(lambda b: my_gae(b.rewards, b.values, b.loss_mask, gamma=0.99, lam=0.95))
    check_loss(lambda b: my_loss(b.logprobs, b.old_logprobs, b.advantages, b.loss_mask))

Importing this package loads neither torch nor transformers; the checks import torch when they need it.
"""

from __future__ import annotations

from search_gym.testing._batches import Settings, TokenBatch
from search_gym.testing._checks import (
    check_advantages,
    check_environment_gradients,
    check_environment_numbers,
    check_lengthening,
    check_loss,
    check_non_finite_numbers,
    check_padding,
    check_row_order,
)
from search_gym.testing._chunking import TurnSampler, check_chunking
from search_gym.testing._failures import InvarianceError, SubjectError
from search_gym.testing._pipeline import TokenPipeline, check_token_pipeline
from search_gym.testing._subjects import Subject

__all__ = [
    "InvarianceError",
    "Settings",
    "Subject",
    "SubjectError",
    "TokenBatch",
    "TokenPipeline",
    "TurnSampler",
    "check_advantages",
    "check_chunking",
    "check_environment_gradients",
    "check_environment_numbers",
    "check_lengthening",
    "check_loss",
    "check_non_finite_numbers",
    "check_padding",
    "check_row_order",
    "check_token_pipeline",
]
