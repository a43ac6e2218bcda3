"""What a causal language model says about tokens it was given: log-probabilities, entropies, values.

A causal LM's output at column t - 1 speaks of token t. This module is the only place that knows it: every (B, T) tensor
that leaves it is indexed by the token it talks about.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from agents.forward import forward_model, has_plain_head, rows_at, states_at
from agents.fused_scores import token_scores
from search_gym.errors import OptionError


class TokenScores(NamedTuple):
    """Per-token results (B, T) float32, 0 where the loss mask is False."""

    logprobs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]


class TokenEvaluation(NamedTuple):
    """Per-token results (B, T) float32, 0 where the loss mask is False; ``values[b, t]`` is what was expected before
    token t was chosen."""

    logprobs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]


def token_logprobs(
    logits: Float[Tensor, "B T V"],
    token_ids: Int[Tensor, "B T"],
    temperature: float,
    *,
    vocab_size: int | None = None,
) -> Float[Tensor, "B T"]:
    """The log-probability of each token given those before it, log softmax(logits / temperature), in float32.

    Token t is read from the logits at t - 1; token 0, which nothing precedes, gets 0. ``vocab_size`` leaves out the
    rows of a padded embedding: ids from there on have probability 0.

    Raises:
        OptionError: ``temperature`` is not positive.
    """
    return _by_token(logprobs_at(tempered(logits, temperature, vocab_size), _next(token_ids)))


def evaluate_tokens(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    loss_mask: Bool[Tensor, "B T"],
    temperature: float,
    *,
    vocab_size: int | None = None,
    entropy_grad: bool = True,
    share_prompts: bool = False,
) -> TokenScores:
    """Log-probabilities and entropies of the tokens in ``loss_mask``, with gradients, for a model without a value head.

    Logits are computed only where they are needed, and in chunks for models with a plain head. ``attention_mask`` is
    True on real tokens, padding being left, right or both. ``vocab_size`` as in ``token_logprobs``.
    ``entropy_grad=False`` saves the memory of the entropy's gradient. ``share_prompts``: compute what rows begin with
    in common once, where it pays and the model has a plain head; its layers must not be compiled or checkpointed.

    Raises:
        OptionError: ``temperature`` is not positive, or ``loss_mask`` holds token 0, which nothing precedes.
    """
    options = vocab_size, entropy_grad, share_prompts
    return _evaluate(model, token_ids, attention_mask, loss_mask, temperature, *options)[0]


class CausalLMPolicy(nn.Module):
    """A causal language model as a policy over tokens: what algorithms without a value function train.

    ``model``: any Hugging Face causal LM. ``vocab_size``: the codec's, when the embedding is padded beyond it.
    ``share_prompts``, at first False, is as in ``evaluate_tokens``.
    """

    def __init__(self, model: PreTrainedModel, *, vocab_size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size
        self.share_prompts = False

    def evaluate_tokens(
        self,
        token_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        temperature: float,
        *,
        entropy_grad: bool = True,
    ) -> TokenScores | TokenEvaluation:
        """Log-probabilities and entropies of the tokens in ``loss_mask``; see ``evaluate_tokens`` above."""
        return evaluate_tokens(
            self.model,
            token_ids,
            attention_mask,
            loss_mask,
            temperature,
            vocab_size=self.vocab_size,
            entropy_grad=entropy_grad,
            share_prompts=self.share_prompts,
        )

    def forward(self, *args: Any, **options: Any) -> TokenScores | TokenEvaluation:
        """`evaluate_tokens`, under the name that wrappers for distributed training call."""
        return self.evaluate_tokens(*args, **options)


class CausalLMWithValueHead(CausalLMPolicy):
    """A causal language model with a scalar value head on its last hidden state.

    ``detach_value``: keep the value loss from training the language model. ``critic``: a second model whose last hidden
    state the head reads instead (Search-R1 has one). The head starts at zero, so every value does, and computes in
    float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        vocab_size: int | None = None,
        detach_value: bool = False,
        critic: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(model, vocab_size=vocab_size)
        self.detach_value = detach_value
        self.critic = critic
        hidden_size = model.config.get_text_config().hidden_size
        self.value_head = nn.Linear(hidden_size, 1, device=model.device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def evaluate_tokens(
        self,
        token_ids: Int[Tensor, "B T"],
        attention_mask: Bool[Tensor, "B T"],
        loss_mask: Bool[Tensor, "B T"],
        temperature: float,
        *,
        entropy_grad: bool = True,
    ) -> TokenEvaluation:
        """Log-probabilities, entropies and values of the tokens in ``loss_mask``; see ``evaluate_tokens`` above."""
        scores, hidden, places = _evaluate(
            self.model,
            token_ids,
            attention_mask,
            loss_mask,
            temperature,
            self.vocab_size,
            entropy_grad,
            self.share_prompts,
            with_states=self.critic is None,
        )
        if self.critic is not None:
            hidden = states_at(self.critic, token_ids, attention_mask, loss_mask, places, self.share_prompts)
        assert hidden is not None
        hidden = hidden.float()
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden.detach() if self.detach_value else hidden).squeeze(-1)
        return TokenEvaluation(scores.logprobs, scores.entropies, _place(values, places, loss_mask))


def tempered(logits: Float[Tensor, "*N V"], temperature: float, vocab_size: int | None) -> Float[Tensor, "*N W"]:
    """Float32 scores whose softmax is the distribution that is sampled from: ``logits`` of real ids / ``temperature``.

    Raises:
        OptionError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise OptionError(
            f"expected a temperature above 0, got {temperature}; do: use greedy=True to take the best token"
        )
    scores = logits[..., :vocab_size].float()
    return scores if temperature == 1 else scores / temperature


def logprobs_at(scores: Float[Tensor, "*N V"], ids: Int[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    """log softmax of ``scores`` at ``ids``, without a second tensor of the scores' size."""
    return scores.gather(-1, ids[..., None]).squeeze(-1) - scores.logsumexp(dim=-1)


def _predictors(loss_mask: Tensor) -> Tensor:
    """Where the next token is a sampled one: places (N,) in rows of T columns, one after the other."""
    if loss_mask[:, 0].any():
        raise OptionError(
            "expected a token before every sampled one, got a loss_mask with token 0; do: keep the prompt"
        )
    return _next(loss_mask).flatten().nonzero().squeeze(-1)


def _evaluate(
    model: PreTrainedModel,
    token_ids: Tensor,
    attention_mask: Tensor,
    loss_mask: Tensor,
    temperature: float,
    vocab_size: int | None,
    entropy_grad: bool,
    share_prompts: bool,
    *,
    with_states: bool = False,
) -> tuple[TokenScores, Tensor | None, Tensor]:
    """Scores of the N tokens in ``loss_mask``, with ``with_states`` the states (N, W) that they were chosen in, and
    their places (N,)."""
    if not temperature > 0:
        raise OptionError(f"expected a temperature above 0, got {temperature}; do: raise it")
    places = _predictors(loss_mask)
    targets = rows_at(_next(token_ids), places)
    if has_plain_head(model):
        states = states_at(model, token_ids, attention_mask, loss_mask, places, share_prompts)
        head: Any = model.get_output_embeddings()
        logprobs, entropies = token_scores(
            states, head.weight, targets, temperature, vocab_size=vocab_size, entropy_grad=entropy_grad
        )
    else:
        columns, in_columns = (places % loss_mask.shape[1]).unique(return_inverse=True)
        output = forward_model(model, token_ids, attention_mask, columns=columns, output_hidden_states=with_states)
        in_logits = places // loss_mask.shape[1] * len(columns) + in_columns
        scores = tempered(rows_at(output["logits"], in_logits), temperature, vocab_size)
        logprobs = logprobs_at(scores, targets)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropies = scores.logsumexp(dim=-1) - (scores.softmax(dim=-1) * scores).sum(dim=-1)
        states = rows_at(output["hidden_states"][-1], places) if with_states else None
    return TokenScores(_place(logprobs, places, loss_mask), _place(entropies, places, loss_mask)), states, places


def _next(x: Tensor) -> Tensor:
    """(B, T): at each column, what belongs to the next token. The last column, which has none, wraps around."""
    return x.roll(-1, dims=1)


def _by_token(x: Tensor) -> Tensor:
    """The one shift by one: (B, T) numbers from the columns that predict, moved to the tokens they predict."""
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)


def _place(x: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """(N,) numbers from the ``places`` that predict, as (B, T) indexed by token; ``like`` has that shape."""
    return _by_token(x.new_zeros(like.numel()).index_copy(0, places, x).view(like.shape))
