"""What TRL needs to train the tiny model: its words as a tokenizer with a chat template, and its own log-probabilities.

A chat's turns are the model's usual ones: a call of the tool ``search`` is ``<search> query </search>``, one of
``answer`` is ``<answer> … </answer>``, and what a tool returns stands inside ``<information>``.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from agents.models import load_model
from agents.policy import evaluate_tokens
from search_gym import WordCodec
from search_gym.codec import TokenCodec
from search_gym.errors import OptionError
from search_gym.tags import closes_turn, parse_turn

_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "user" %}Question: {{ message.content }}
{% elif message.role == "tool" %}<information> {{ message.content }} </information> \
{% else %}{{ message.content }} \
{%- for call in message.tool_calls or [] %}<{{ call.function.name }}> \
{% for name, value in call.function.arguments.items() %}\
{% if call.function.name not in ("search", "answer") %}{{ name }} {% endif %}{{ value }} {% endfor -%}
</{{ call.function.name }}> {% endfor %}{% endif %}
{%- endfor -%}
"""
_ARGUMENTS = {"search": "query", "answer": "answer"}


class TinyTokenizer(PreTrainedTokenizerFast):
    """The words of a `WordCodec` as a Hugging Face tokenizer, which encodes and decodes as the codec does."""

    codec: WordCodec

    @classmethod
    def of(cls, codec: WordCodec) -> TinyTokenizer:
        """The tokenizer of ``codec``, with a chat template that writes tool calls as the tags of the environment."""
        phrases = sorted((t for t in codec.tokens[3:] if not re.fullmatch(r"\w+", t)), key=len, reverse=True)
        pattern = "|".join([re.escape(t) + (r"(?!\w)" if re.match(r"\w", t[-1]) else "") for t in phrases])
        backend = Tokenizer(WordLevel({t: i for i, t in enumerate(codec.tokens)}, codec.tokens[codec.unk_id]))
        splitter = Split(Regex(rf"{pattern}|\w+|\S"), "removed", invert=True)
        backend.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer = cls(
            tokenizer_object=backend,
            pad_token=codec.tokens[codec.pad_id],
            eos_token=codec.tokens[codec.eos_id],
            unk_token=codec.tokens[codec.unk_id],
            padding_side="left",
            chat_template=_CHAT_TEMPLATE,
        )
        tokenizer.codec = codec
        # TRL asks whether there is one; what a response says is read below.
        tokenizer.response_template = {"defaults": {"role": "assistant"}}
        return tokenizer

    def parse_response(self, response: Any, schema: Any = None, *, prefix: Any = None, tools: Any = None) -> Any:
        """The message that these token ids are: a tool call for a closed search or answer, else their text."""
        text = self.codec.decode([int(token) for token in response])
        event, content = parse_turn(text)
        if event not in _ARGUMENTS:
            return {"role": "assistant", "content": text}
        call = {"name": event, "arguments": {_ARGUMENTS[event]: content}}
        before = text[: text.index(f"<{event}>")]
        return {"role": "assistant", "content": before, "tool_calls": [{"type": "function", "function": call}]}


def load_tiny(name_or_path: str = "tiny") -> tuple[Any, TinyTokenizer]:
    """A tiny model and its tokenizer; a trainer of TRL that gets them needs `add_own_head`, too.

    Raises:
        OptionError: the model is not a tiny one.
    """
    loaded, codec = load_model(name_or_path)
    if not isinstance(codec, WordCodec):
        raise OptionError(f"expected a tiny model, whose tags are single tokens, got {name_or_path!r}")
    model: Any = loaded
    # TRL looks there for the code of a reference model whose class is not in transformers.
    type(model.config).auto_map = {}
    model.generation_config.eos_token_id = closing_ids(codec)
    return model, TinyTokenizer.of(codec)


def add_own_head(trainer: Any) -> None:
    """Let a trainer of TRL score tokens with its models' own logits, which it cannot compute by itself."""
    for model in (trainer.model, trainer.ref_model):
        if model is not None:
            _score_with_own_logits(model, trainer.temperature)


def _score_with_own_logits(model: Any, temperature: float) -> None:
    """Let ``model(..., labels=, fused_lm_head=True)``, which is how TRL scores tokens, use the model's own logits.

    As in TRL, entropies have no gradient here, and both are 0 where the label is -100.
    """
    forward = model.forward

    @functools.wraps(forward)  # generate looks at the arguments
    def scoring_forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **options: Any) -> Any:
        if not fused_lm_head:
            return forward(*args, **options) if labels is None else forward(*args, labels=labels, **options)
        from trl.trainer.utils import FusedCausalLMOutput  # pyright: ignore[reportMissingImports]

        is_scored = labels != -100
        scores = evaluate_tokens(
            model, options["input_ids"], options["attention_mask"].bool(), is_scored, temperature, entropy_grad=False
        )
        return FusedCausalLMOutput(
            log_probs=scores.logprobs[:, 1:], entropy=scores.entropies[:, 1:], label_mask=is_scored[:, 1:]
        )

    model.forward = scoring_forward


def closing_ids(codec: TokenCodec) -> list[int]:
    """The tokens that end a turn: EOS, and those whose text is a closing tag."""
    return [codec.eos_id, *(i for i in range(codec.vocab_size) if closes_turn(codec.decode([i])))]
